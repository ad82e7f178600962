"""What verify() gives back: a list of checks, each with what was found."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..checkpoints.checkpoint import DEFAULT_LAYOUT

OK, WARNING, FAILED = "ok", "warning", "FAILED"


@dataclass(frozen=True)
class Check:
    """One line. status: OK, WARNING (usable, but look) or FAILED (damaged, or not the same model).

    figures: the numbers behind the detail, JSON-ready.
    """

    name: str
    status: str
    detail: str
    figures: dict = field(default_factory=dict)


@dataclass
class Report:
    """The checks of one model, in order. Print it, or take as_dict().

    layout: how its I2_S tensors were read. against: the other model, if any.
    """

    path: Path
    against: Path | None = None
    layout: str = DEFAULT_LAYOUT
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self):
        """Whether nothing failed; warnings do not count."""
        return not self.named(FAILED)

    def named(self, status):
        """The checks of a status."""
        return [check for check in self.checks if check.status == status]

    def __getitem__(self, name):
        """The check of this name; KeyError if it was not made."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def as_dict(self):
        """Everything in plain types, for JSON."""
        return {
            "path": str(self.path),
            "against": self.against and str(self.against),
            "passed": self.passed,
            "layout": self.layout,
            "seconds": round(self.seconds, 3),
            "checks": [asdict(check) for check in self.checks],
        }

    def __str__(self):
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [str(self.path)]
        lines += [f"  {c.status:7}  {c.name:{width}}  {c.detail}" for c in self.checks]
        failed = _counted(len(self.named(FAILED)), "failure")
        warned = _counted(len(self.named(WARNING)), "warning")
        return "\n".join([*lines, f"{failed}, {warned} ({self.seconds:.1f} s)"])


def _counted(n, what):
    return f"{n or 'no'} {what}{'s' if n != 1 else ''}"


def reason(error, path):
    """A FormatError's words, without the path of the report's own file."""
    return str(error).removeprefix(f"{path}: ")


def some(texts, n=3):
    """The first few of many texts."""
    more = f" and {len(texts) - n} more" if len(texts) > n else ""
    return "; ".join(texts[:n]) + more
