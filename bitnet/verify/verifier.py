"""verify(): is a model file sound, is it the same model as another file, how do its bytes lie?"""

import contextlib
import mmap
import time
from pathlib import Path

import numpy as np

from ..checkpoints import weights
from ..checkpoints.open_checkpoint import open_checkpoint
from ..errors import FormatError
from ..formats.mapped_file import check_map
from ..runtime import cpu
from . import compare, running, tensors, text
from .result import FAILED, OK, WARNING, Check, reason
from .result import Report as Report

AUTO = "auto"
PADDING = 64  # bytes that alignment leaves unused beside a tensor, and some
UNUSABLE = ("codes", "norms", "embedding", "head")  # checks without which a model is not run


def verify(
    path,
    against=None,
    *,
    layout="128x32",
    against_layout="128x32",
    masters=False,
    threads=None,
    progress=None,
):
    """A Report on the model at path, an HF folder or a .gguf file.

    against: another file of the same model, in any container. layout, against_layout: how the I2_S
    tensors of the two lie, one of source.LAYOUTS, or for layout "auto" to find out. masters: the
    floats of both are, see open_checkpoint. threads: as of load. progress: called with a few words.

    What is wrong with a model is a failed check; OSError where a file cannot be opened, ValueError
    for an argument.
    """
    started = time.monotonic()
    report = Report(Path(path), against and Path(against))
    work = _Work(report, cpu.threads(threads)[0], masters, progress or (lambda words: None))
    work.run(layout, against_layout)
    report.seconds = time.monotonic() - started
    return report


class _Work:
    """The checks of one report, in order."""

    def __init__(self, report, threads, masters, show):
        self.report, self.checks = report, report.checks
        self.threads, self.masters, self.show = threads, masters, show
        self.files = []  # mapped ones that are read from end to end

    def run(self, layout, against_layout):
        source = self.scan("structure", self.report.path, "128x32" if layout == AUTO else layout)
        if source is None:
            return
        self.checks += check_files(source)
        self.checks += text.check_config(source)
        found, tokenizer, checks = text.build(source)
        self.checks += checks
        if tokenizer is not None:
            self.checks += text.check_tokenizer(found, tokenizer, source)
        if layout == AUTO:
            source = self.with_likely_layout(source, tokenizer)
        self.report.layout = source.layout
        self.checks += tensors.check_ternary(source, self.progress)
        self.checks += tensors.check_norms(source)
        is_text = found and (lambda i: found.token(i) is not None and not found.is_special(i))
        self.checks += tensors.check_rows(source, is_text, self.progress)
        with self.opened(source, tokenizer) as ours:
            if self.report.against is not None:
                self.compare(source, tokenizer, ours, against_layout)
        for file in source.files:
            try:
                check_map(file.data, file.path)
            except FormatError as error:
                self.checks.append(Check("file", FAILED, reason(error, source.path)))

    def scan(self, name, path, layout):
        """The Checkpoint of a path, None where it is refused, and the check that says so."""
        self.show(f"reading {path}")
        try:
            source = open_checkpoint(path, layout=layout, masters=self.masters)
        except FormatError as error:
            self.checks.append(Check(name, FAILED, reason(error, self.report.path)))
            return None
        self.files += source.files
        config = source.config
        types = sorted({t.stored_as for t in source.ternary.values()})
        detail = f"{config.family} ({config.architecture}), {config.num_hidden_layers} layers, "
        detail += f"{len(source.ternary)} ternary tensors ({', '.join(types)}), "
        self.checks.append(Check(name, OK, detail + f"{len(source.floats)} others"))
        return source

    def with_likely_layout(self, source, tokenizer):
        layout, check = running.find_layout(source, tokenizer, self.threads, self.progress)
        self.checks.append(check)
        return (
            open_checkpoint(source.path, layout=layout, masters=self.masters) if layout else source
        )

    @contextlib.contextmanager
    def opened(self, source, tokenizer):
        """The model's Weights, run once; None where the checks so far say that it cannot be."""
        if any(check.name in UNUSABLE for check in self.report.named(FAILED)):
            yield None
            return
        self.progress("running a text")
        try:
            files = weights.open(source.path, layout=source.layout)
        except FormatError as error:
            self.checks.append(Check("forward pass", FAILED, reason(error, source.path)))
            yield None
            return
        with files:
            self.checks.append(running.check_run(files, tokenizer, self.threads))
            yield files

    def compare(self, source, tokenizer, ours, layout):
        """The checks against the other model; ours: the Weights, or None."""
        other = self.scan("against", self.report.against, layout)
        if other is None:
            return
        self.checks += compare.check_config(source, other)
        if self.report["= shape"].status == FAILED:
            return
        self.checks += compare.check_ternary(source, other, self.progress)
        self.checks += compare.check_floats(source, other, self.progress)
        _, theirs, checks = text.build(other)
        self.checks += [check for check in checks if check.status == FAILED]
        self.checks.append(compare.check_tokens(tokenizer, theirs))
        if ours is not None:
            self.progress("running the same text on the other")
            smaller = min(source.config, other.config, key=lambda config: config.vocab_size)
            ids = running.some_ids(tokenizer or theirs, smaller)
            try:
                with weights.open(other.path, layout=layout) as files:
                    self.checks += compare.check_hidden(ours, files, ids, self.threads)
            except FormatError as error:
                detail = f"not compared: {reason(error, source.path)}"
                self.checks.append(Check("= hidden states", WARNING, detail))

    def progress(self, words):
        """Called between tensors: those read are given back, which would count as our memory."""
        self.show(words)
        for file in self.files:
            base = file.data
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                base.madvise(mmap.MADV_DONTNEED)


def check_files(source):
    """Check "bytes": how much of the files is header, tensors, and nothing of either."""
    size = sum(len(file.data) for file in source.files)
    header, taken, n_tensors = 0, 0, 0
    for file in source.files:
        starts = [t.data.ctypes.data - file.data.ctypes.data for t in file.tensors.values()]
        header += min(starts, default=len(file.data))
        taken += sum(len(t.data) for t in file.tensors.values())
        n_tensors += len(starts)
    unused = size - header - taken
    detail = f"{size:,}: header {header:,}, {n_tensors} tensors {taken:,}, unused {unused:,}"
    if unused > PADDING * (n_tensors + 1):
        yield Check("bytes", WARNING, detail + ", more than padding takes")
    else:
        yield Check("bytes", OK, detail)
