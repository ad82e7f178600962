"""verify(): is a model file sound, is it the same model as another file, how do its bytes lie?"""

import contextlib
import time
from pathlib import Path

from ..checkpoints import weights
from ..checkpoints.checkpoint import DEFAULT_LAYOUT
from ..checkpoints.open_checkpoint import open_checkpoint
from ..errors import FormatError
from ..formats.mapped_file import check_map, release_pages
from ..progress import silent
from ..runtime import cpu, dispatch
from ..runtime.float_mode import in_ieee_mode
from ..text.chat_template import check_template
from . import compare, running, tensors, text
from .result import FAILED, OK, WARNING, Check, Report, reason

AUTO = "auto"
MAX_PADDING = 64  # bytes beside a tensor; the usual alignment leaves less than 32
UNUSABLE = ("codes", "norms", "embedding", "head")  # checks without which a model is not run


@in_ieee_mode
def verify(
    path,
    against=None,
    *,
    layout=DEFAULT_LAYOUT,
    against_layout=DEFAULT_LAYOUT,
    masters=False,
    chat_template=None,
    threads=None,
    progress=None,
):
    """A Report on the model at path, an HF folder or a .gguf file.

    against: another file of the same model, in any container. layout, against_layout: how the I2_S
    tensors of the two lie, one of I2_S_LAYOUTS, or for layout "auto" to find out. masters: the
    floats of both are, see open_checkpoint. chat_template, threads: as of load. progress: is
    told tensors, see bitnet/progress.py.

    What is wrong with a model is a failed check; OSError where a file cannot be opened, ValueError
    for an argument.
    """
    dispatch.check()
    if chat_template is not None:
        check_template("chat_template", chat_template)
    started = time.monotonic()
    report = Report(Path(path), against and Path(against))
    verifier = _Verifier(report, cpu.threads(threads)[0], masters, progress or silent)
    verifier.run(layout, against_layout, chat_template)
    report.seconds = time.monotonic() - started
    return report


class _Verifier:
    """The checks of one report, in order."""

    def __init__(self, report, threads, masters, show):
        self.report, self.checks = report, report.checks
        self.threads, self.masters, self.show = threads, masters, show
        self.files = []  # mapped ones that are read from end to end

    def run(self, layout, against_layout, chat_template):
        given = DEFAULT_LAYOUT if layout == AUTO else layout
        checkpoint = self.open("structure", self.report.path, given)
        if checkpoint is None:
            return
        self.checks += check_files(checkpoint)
        self.checks += text.check_config(checkpoint)
        vocab, tokenizer, checks = text.build(checkpoint, chat_template)
        self.checks += checks
        if tokenizer is not None:
            self.checks += text.check_tokenizer(vocab, tokenizer, checkpoint)
        if layout == AUTO:
            checkpoint = self.with_likely_layout(checkpoint, tokenizer)
        self.report.layout = checkpoint.layout
        self.checks += tensors.check_ternary(checkpoint, self.progress)
        self.checks += tensors.check_norms(checkpoint)
        is_text = vocab and (lambda i: vocab.token(i) is not None and not vocab.is_special(i))
        self.checks += tensors.check_rows(checkpoint, is_text, self.progress)
        with self.weights_of(checkpoint, tokenizer) as ours:
            if self.report.against is not None:
                self.compare(checkpoint, tokenizer, ours, against_layout)
        for file in checkpoint.files:
            try:
                check_map(file.data, file.path)
            except FormatError as error:
                self.checks.append(Check("file", FAILED, reason(error, checkpoint.path)))

    def open(self, name, path, layout):
        """The Checkpoint of a path, None where it is refused, and the check that says so."""
        self.show(f"reading {path}", 0, 0)
        try:
            checkpoint = open_checkpoint(path, layout=layout, masters=self.masters)
            checkpoint.settle_tables()
        except FormatError as error:
            self.checks.append(Check(name, FAILED, reason(error, self.report.path)))
            return None
        self.files += checkpoint.files
        config = checkpoint.config
        types = sorted({t.stored_as for t in checkpoint.ternary.values()})
        detail = f"{config.family} ({config.architecture}), {config.num_hidden_layers} layers, "
        detail += f"{len(checkpoint.ternary)} ternary tensors ({', '.join(types)}), "
        self.checks.append(Check(name, OK, detail + f"{len(checkpoint.floats)} others"))
        return checkpoint

    def with_likely_layout(self, checkpoint, tokenizer):
        layout, check = running.find_layout(checkpoint, tokenizer, self.threads, self.progress)
        self.checks.append(check)
        if layout is None:
            return checkpoint
        return open_checkpoint(checkpoint.path, layout=layout, masters=self.masters)

    @contextlib.contextmanager
    def weights_of(self, checkpoint, tokenizer):
        """The model's Weights, run once; None where the checks so far say that it cannot be."""
        if any(check.name in UNUSABLE for check in self.report.named(FAILED)):
            yield None
            return
        self.progress("running a text")
        try:
            files = weights.open(checkpoint.path, layout=checkpoint.layout, check_cache=True)
        except FormatError as error:
            self.checks.append(Check("forward pass", FAILED, reason(error, checkpoint.path)))
            yield None
            return
        with files:
            self.checks += check_repacked(files)
            self.checks.append(running.check_run(files, tokenizer, self.threads))
            yield files

    def compare(self, checkpoint, tokenizer, ours, layout):
        """The checks against the other model; ours: the Weights, or None."""
        other = self.open("against", self.report.against, layout)
        if other is None:
            return
        self.checks += compare.check_config(checkpoint, other)
        if self.report["= shape"].status == FAILED:
            return
        self.checks += compare.check_ternary(checkpoint, other, self.progress)
        self.checks += compare.check_floats(checkpoint, other, self.progress)
        _, theirs, checks = text.build(other)
        self.checks += [check for check in checks if check.status == FAILED]
        self.checks.append(compare.check_tokens(tokenizer, theirs))
        if ours is not None:
            self.progress("running the same text on the other")
            smaller = min(checkpoint.config, other.config, key=lambda config: config.vocab_size)
            ids = running.some_ids(tokenizer or theirs, smaller)
            try:
                with weights.open(other.path, layout=layout) as files:
                    self.checks += compare.check_hidden(ours, files, ids, self.threads)
            except FormatError as error:
                detail = f"not compared: {reason(error, checkpoint.path)}"
                self.checks.append(Check("= hidden states", WARNING, detail))

    def progress(self, what, done=0, total=0):
        """Called between tensors: those read are given back, which would count as our memory."""
        self.show(what, done, total)
        for file in self.files:
            release_pages(file.data)


def check_repacked(files):
    """Check "repacked file" of weights.open()'s files, where they have one: every checksum."""
    if files.damage is not None:
        what = "and made again" if files.repacked else "and weights go to memory"
        yield Check("repacked file", WARNING, f"{files.damage}: not used, {what}")
    elif files.repacked:
        yield Check("repacked file", OK, f"{files.repacked}: every checksum is as written")


def check_files(checkpoint):
    """Check "bytes": how much of the files is header, tensors, and nothing of either."""
    size = sum(len(file.data) for file in checkpoint.files)
    header, taken, n_tensors = 0, 0, 0
    for file in checkpoint.files:
        starts = [t.data.ctypes.data - file.data.ctypes.data for t in file.tensors.values()]
        header += min(starts, default=len(file.data))
        taken += sum(len(t.data) for t in file.tensors.values())
        n_tensors += len(starts)
    unused = size - header - taken
    detail = f"{size:,}: header {header:,}, {n_tensors} tensors {taken:,}, unused {unused:,}"
    if unused > MAX_PADDING * (n_tensors + 1):
        yield Check("bytes", WARNING, detail + ", more than padding takes")
    else:
        yield Check("bytes", OK, detail)
