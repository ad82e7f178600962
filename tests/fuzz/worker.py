"""The process that runs cases, one after the other, and mutates those that reached new lines.

Started by run.py, which watches it: a case may end it, and its folder then holds that case. It
prints a line of JSON for each failure, every second, and at the end.
"""

import faulthandler
import importlib
import json
import random
import signal
import sys
import time
import traceback
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
sys.path.append(str(TESTS.parent))  # last: the installed bitnet is tested where there is one

from fuzz.cases import Case, corpus  # noqa: E402
from fuzz.mutate import mutate  # noqa: E402
from support.guard import limited  # noqa: E402

import bitnet  # noqa: E402
from bitnet.errors import FormatError  # noqa: E402

PACKAGE = str(Path(bitnet.__file__).parent)
MEMORY = 64 << 20  # bytes beyond the size of the case


class Coverage:
    """Pairs of lines of the package that ran one after the other, by sys.settrace."""

    def __init__(self):
        self.seen, self._last = set(), {}

    def trace(self, frame, event, arg):
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame, event, arg):
        if event == "return":
            self._last.pop(frame, None)
        elif event == "line":
            code, now = frame.f_code, frame.f_lineno
            self.seen.add((code.co_filename, self._last.get(frame), now))
            self._last[frame] = now
        return self._line


def execute(run, seconds, case, folder, trace=None):
    """Run one case: None if it ended as it should, else the exception."""
    folder.mkdir(exist_ok=True)
    case.write(folder)
    try:
        with limited(seconds, MEMORY + case.size):
            sys.settrace(trace)
            try:
                run(folder)
            finally:
                sys.settrace(None)
    except FormatError as error:
        str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a library's panic is no Exception
        return error
    return None


class Session:
    """What one worker knows; the seed decides all that it does.

    targets: {name: (function, group of the corpus)}.
    """

    def __init__(self, targets, cpu_seconds, seed, folder):
        self.targets, self.cpu_seconds, self.seed, self.folder = targets, cpu_seconds, seed, folder
        self.rng, self.coverage = random.Random(seed), Coverage()
        self.cases = {group: corpus(group) for _, group in targets.values()}
        self.counts, self.seen = dict.fromkeys(targets, 0), set()

    @property
    def executions(self):
        return sum(self.counts.values())

    def run_corpus(self):
        for target, (_, group) in self.targets.items():
            for case in list(self.cases[group]):
                self.attempt(target, case)

    def run_mutant(self):
        """One mutant for one target; kept if it reached something new."""
        target = self.rng.choice(list(self.targets))
        cases = self.cases[self.targets[target][1]]
        parent = self.rng.choice(cases)
        files, steps = mutate(self.rng, parent.files, [case.files for case in cases])
        case = Case(files, parent.steps + steps)
        if self.attempt(target, case):
            cases.append(case)

    def attempt(self, target, case):
        """Run a case and say whether it reached new lines."""
        known = len(self.coverage.seen)
        self.counts[target] += 1
        about = {"target": target, "seed": self.seed, "execution": self.executions,
                 "steps": case.steps}  # fmt: skip
        (self.folder / "case.json").write_text(json.dumps(about))
        run = self.targets[target][0]
        files, trace = self.folder / "files", self.coverage.trace
        error = execute(run, self.cpu_seconds, case, files, trace)
        if error is not None:
            self.report(error, about, case)
        return len(self.coverage.seen) > known

    def report(self, error, about, case):
        """Print a failure, if none that ended on the same line was printed."""
        frames = traceback.extract_tb(error.__traceback__)
        last = [f for f in frames if f.filename.startswith(PACKAGE)] or frames
        where = type(error).__name__, last[-1].filename, last[-1].lineno
        if where in self.seen:
            return
        self.seen.add(where)
        files = self.folder / f"failure-{len(self.seen)}"
        files.mkdir()
        case.write(files)
        say(failure="".join(traceback.format_exception(error)), case=about, files=str(files))

    def say_totals(self):
        kept = sum(map(len, self.cases.values()))
        say(executions=self.executions, edges=len(self.coverage.seen), kept=kept,
            counts=self.counts)  # fmt: skip


def say(**line):
    print(json.dumps(line), flush=True)


def work(session, seconds, most, skip_corpus):
    """Run the corpus, then mutants, for so many seconds or executions."""
    end, next_word = time.monotonic() + seconds, 0
    if not skip_corpus:
        session.run_corpus()
    while time.monotonic() < end and (most is None or session.executions < most):
        session.run_mutant()
        if time.monotonic() > next_word:
            session.say_totals()
            next_word = time.monotonic() + 1
    session.say_totals()


def replay(targets, cpu_seconds, path, folder):
    """Run one case for each target, without the tracer."""
    for target, (run, _) in targets.items():
        about = {"target": target, "steps": [str(path)]}
        (folder / "case.json").write_text(json.dumps(about))
        error = execute(run, cpu_seconds, Case.read(path), folder / "files")
        if error is not None:
            text = "".join(traceback.format_exception(error))
            say(failure=text, case=about, files=str(path))


def main(module, targets, folder, path=None, seed=0, **options):
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)  # says where, then ends the process
    known, folder = importlib.import_module(module), Path(folder)
    chosen = {name: known.TARGETS[name] for name in targets}
    if path:
        replay(chosen, known.CPU_SECONDS, Path(path), folder)
    else:
        work(Session(chosen, known.CPU_SECONDS, seed, folder), **options)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
