"""A case of the fuzzer: the files of one model, in memory, in a folder, and in the corpus."""

from dataclasses import dataclass, field
from pathlib import Path

CORPUS = Path(__file__).resolve().parent / "corpus"


@dataclass
class Case:
    """files: {name: bytes}. steps: the case of the corpus it began as, and what was done to it."""

    files: dict[str, bytes]
    steps: list[str] = field(default_factory=list)

    @property
    def size(self):
        return sum(map(len, self.files.values()))

    def write(self, folder):
        """Into a folder that may hold another case: what is left of that is removed."""
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            if path.relative_to(folder).as_posix() not in self.files:
                path.unlink()
        for name, raw in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(raw)

    @classmethod
    def read(cls, path):
        """A case of a folder; or of one file, named as its target expects it."""
        if path.is_file():
            name = f"model{path.suffix}" if path.suffix == ".gguf" else "tokenizer.model"
            return cls({name: path.read_bytes()}, [path.name])
        found = sorted(p for p in path.rglob("*") if p.is_file())
        return cls({p.relative_to(path).as_posix(): p.read_bytes() for p in found}, [path.name])


def corpus(group):
    """The cases of one folder of the corpus, by name."""
    return [Case.read(path) for path in sorted((CORPUS / group).iterdir())]
