"""A model at work on a short text: bits per byte, embeddings, and the layout that fits best."""

import gc
import math

import numpy as np

from ..checkpoints import weights
from ..checkpoints.checkpoint import DEFAULT_LAYOUT, I2_S_LAYOUTS
from ..errors import FormatError
from ..formats import ternary_layouts
from ..generation.embedding import normalized
from ..models.transformer import Transformer
from ..runtime import cgroup
from ..runtime.pool import Pool
from .result import FAILED, OK, WARNING, Check, reason

N_TOKENS = 160  # tokens of the text that are run at most
TEXT = (
    "The harbour was quiet that morning. A thin mist lay over the water, and the boats that had "
    "come in during the night were still tied to the long wooden pier. An old man sat on a box at "
    "the end of it, mending a net with slow and careful hands. He had done this for fifty years, "
    "and he did not need to look at his work. \"You are early,\" he said, when he heard her steps "
    "on the boards. She did not answer at once. She had walked all the way from the village in the "
    "dark, with nothing in her hands but the letter, and now that she was here she did not know "
    "how to begin. \"My brother wrote to me,\" she said at last. \"He says that you were there "
    "when the ship went down.\""
)  # fmt: skip
OTHER_TEXT = (
    "A recipe for bread: flour, water, salt and a little yeast, and four hours of patience."
)
SAME_EMBEDDING = 0.9999  # cosine: no sound model finds the two texts above so alike
# A layout is named if its bits per byte are below this share of the next best one's; in a
# trained model the right one has about half of them.
CLEAR_GAIN = 0.9


class Run:
    """One forward pass. output: float32 (n, vocab) logits, (n, hidden) of an embedding model."""

    def __init__(self, files, ids, threads, after_layer=None):
        """files: of weights.open. after_layer: see Transformer.forward."""
        self.config, self.ids = files.config, ids
        pool = Pool(max(1, cgroup.memory()))
        transformer = Transformer(
            files, pool, n_threads=threads, context=len(ids), max_batch=len(ids)
        )
        state = transformer.new_state(dtype="f32")
        outputs = "all" if self.config.pooling is None else "hidden"
        sequences = [(state, len(ids))]
        token_ids = np.array(ids, np.int32)
        self.output = transformer.forward(
            token_ids, sequences, logits=outputs, after_layer=after_layer
        )
        state.close()

    @property
    def embedding(self):
        """Of the whole text, float32 (hidden,)."""
        return normalized(self.output[-1])

    def bits(self):
        """Bits of each token but the first, given those before: float64 (n - 1,)."""
        bits = np.empty(len(self.ids) - 1)
        for i, following in enumerate(self.ids[1:]):
            row = self.output[i].astype(np.float64)
            top = row.max()
            bits[i] = (top + math.log(np.exp(row - top).sum()) - row[following]) / math.log(2)
        return bits

    def bits_per_byte(self, tokenizer):
        """Of the text of those tokens: lower is better, 8 is no better than counting bytes."""
        return self.bits().sum() / n_bytes(tokenizer, self.ids[1:])


def n_bytes(tokenizer, ids):
    """Bytes of the text of token ids, at least 1."""
    return max(1, sum(len(tokenizer.token_bytes(i)) for i in ids))


def some_ids(tokenizer, config, text=TEXT):
    """The first token ids of a text that have a row, or any where it has none or there is no
    tokenizer; at least 2."""
    ids = tokenizer.encode(text, add_eos=config.pooling is not None) if tokenizer else []
    ids = [i for i in ids if i < config.vocab_size]
    if len(ids) < 2:
        ids = (len(text) * np.arange(1, 33) % config.vocab_size).tolist()
    return ids[: min(N_TOKENS, config.max_position_embeddings)]


def check_run(files, tokenizer, threads):
    """Check "forward pass" of weights.open()'s files: finite, and better than guessing."""
    config, linears = files.config, files.checkpoint.ternary.values()
    try:
        run = Run(files, some_ids(tokenizer, config), threads)
        if config.pooling is not None:
            other = Run(files, some_ids(tokenizer, config, OTHER_TEXT), threads)
    except FormatError as error:
        return Check("forward pass", FAILED, reason(error, files.path))
    n_bad = len(run.output) - np.isfinite(run.output).all(axis=1).sum()
    if n_bad:
        return Check("forward pass", FAILED, f"{n_bad} of {len(run.output)} tokens not finite")
    if config.pooling is not None:
        return _check_embeddings(run, other)
    return _check_bits(run, tokenizer, any(t.stored_as.startswith("I2_S") for t in linears))


def _check_embeddings(run, other):
    cosine = float(run.embedding @ other.embedding)
    detail = f"{len(run.ids)} tokens, finite; two texts have a cosine of {cosine:.3f}"
    status = WARNING if cosine > SAME_EMBEDDING else OK
    return Check("forward pass", status, detail, {"cosine": cosine})


def _check_bits(run, tokenizer, has_layouts):
    of_token, guessing = run.bits().mean(), math.log2(run.config.vocab_size)
    figures = {"bits_per_token": of_token, "guessing": guessing}
    detail = f"{len(run.ids)} tokens, finite; {of_token:.2f} bits a token"
    if tokenizer is None:
        return Check("forward pass", OK, detail, figures)
    of_byte = figures["bits_per_byte"] = run.bits_per_byte(tokenizer)
    detail += f", {of_byte:.3f} bits per byte of English"
    if of_token < guessing and of_byte < 8:
        return Check("forward pass", OK, detail, figures)
    detail += f": no better than guessing, which takes {guessing:.2f} bits a token"
    detail += "; --layout auto tries the other layouts of I2_S" if has_layouts else ""
    return Check("forward pass", WARNING, detail, figures)


# layouts ------------------------------------------------------------------------------------------


def find_layout(checkpoint, tokenizer, threads, progress):
    """(the likely layout of a checkpoint's I2_S tensors or None, Check "layout").

    Under each layout that its shapes allow the same text is scored, in memory, one after the other.
    """
    tensors = [t for t in checkpoint.ternary.values() if t.tensor.type == "I2_S"]
    if not tensors:
        return None, Check("layout", OK, "no I2_S tensors: there is nothing to find out")
    possible = [
        layout
        for layout, type_name in I2_S_LAYOUTS.items()
        if all(_fits(type_name, t) for t in tensors)
    ]
    if checkpoint.config.pooling is not None or tokenizer is None:
        what = "a tokenizer" if tokenizer is None else "a model that generates text"
        return None, Check("layout", WARNING, f"cannot tell: that takes {what}")
    scores = {}
    for layout in possible:
        progress(f"layout {layout}")
        try:
            scores[layout] = _score(checkpoint.path, layout, tokenizer, threads)
        except FormatError as error:
            return None, Check("layout", FAILED, reason(error, checkpoint.path))
    ids = some_ids(tokenizer, checkpoint.config)
    guessing = len(ids) * math.log2(checkpoint.config.vocab_size) / n_bytes(tokenizer, ids)
    return _judged(scores, guessing)


def _fits(type_name, t):
    try:
        ternary_layouts.n_bytes(type_name, t.n_rows, t.n_cols)
    except ValueError:
        return False
    return True


def _score(path, layout, tokenizer, threads):
    """Bits per byte under one layout; its repacked weights are gone afterwards."""
    with weights.open(path, layout=layout, cache=False) as files:
        run = Run(files, some_ids(tokenizer, files.config), threads)
    score = run.bits_per_byte(tokenizer)
    gc.collect()
    return float(score) if math.isfinite(score) else math.inf


def _judged(scores, guessing):
    """(layout or None, Check) from {layout: bits per byte}.

    guessing: bits per byte if all tokens were equally likely.
    """
    ranked = sorted(scores, key=scores.get)
    best = ranked[0]
    shown = ", ".join(f"{name} {scores[name]:.3f}" for name in ranked) + " bits per byte"
    if len(ranked) == 1:
        return best, Check("layout", OK, f"{best}: the only one that its shapes allow", scores)
    if not scores[best] < CLEAR_GAIN * min(scores[ranked[1]], guessing):
        detail = f"cannot tell, the model knows no English under any or all of them: {shown}"
        return None, Check("layout", WARNING, detail, scores)
    if best == DEFAULT_LAYOUT:
        return best, Check("layout", OK, f"{best}, the default: {shown}", scores)
    detail = f"{best}: {shown}; give --layout {best} to every command"
    return best, Check("layout", WARNING, detail, scores)
