"""The weights of one model by themselves: codes, scales, norms, embedding; some rows at a time."""

import numpy as np

from ..errors import FormatError
from ..formats.float_blocks import dequantize_steps
from .result import FAILED, OK, WARNING, Check, reason, some

MIN_ZEROS, MAX_ZEROS = 0.01, 0.95  # share of a tensor; quantising by the mean gives about 0.31
MAX_ZERO_ROWS = 0.1  # share of a tensor: a few outputs do die in training
MIN_SCALE, MAX_SCALE = 1e-6, 100.0  # scale of a tensor: no model is trained to others
MAX_NORM = 1e4  # |weight| of a norm that is not reported as unusual
MAX_NEGATIVE = 0.25  # share of a model's norm weights; those stored less 1 have about a half
MIN_BELOW_1 = 1e-3  # share of Gemma's norm weights: its post norms are small


def check_ternary(checkpoint, progress):
    """Checks "codes", "shares", "rows" and "scales" of every linear layer."""
    counts, bad, odd, dead, scales, odd_scales = np.zeros(3, np.int64), [], [], [], [], []
    n_dead = n_rows = 0
    for i, (name, t) in enumerate(checkpoint.ternary.items(), 1):
        progress(f"weights: {name} ({i} of {len(checkpoint.ternary)})")
        try:
            of_tensor, zero_rows, tensor_scales = _counts(t)
        except FormatError as error:
            bad.append(reason(error, checkpoint.path))
            continue
        counts += of_tensor
        n_dead, n_rows = n_dead + zero_rows, n_rows + t.n_rows
        shares = of_tensor / of_tensor.sum()
        if not of_tensor.all() or not MIN_ZEROS <= shares[1] <= MAX_ZEROS:
            odd.append(f"{name} {_percentages(shares)}")
        if zero_rows > MAX_ZERO_ROWS * t.n_rows:
            dead.append(f"{name} {zero_rows} of {t.n_rows}")
        low, high = float(tensor_scales.min()), float(tensor_scales.max())
        scales += [low, high]
        if low < MIN_SCALE or high > MAX_SCALE:
            odd_scales.append(f"{name} {low:g} to {high:g}" if low < high else f"{name} {low:g}")
    if bad:
        yield Check("codes", FAILED, some(bad))
    else:
        n_weights = f"{int(counts.sum()):,} weights"
        yield Check("codes", OK, f"{len(checkpoint.ternary)} tensors, {n_weights}, all -1, 0 or +1")
    if not scales:
        return
    shares = counts / counts.sum()
    figures = dict(zip(("-1", "0", "+1"), shares.tolist(), strict=True))
    whole = _percentages(shares)
    odd = f"unusual: {some(odd)}; all together {whole}" if odd else ""
    yield Check("shares", WARNING if odd else OK, odd or whole, figures)
    detail = f"{n_dead:,} of {n_rows:,} rows are all 0"
    dead = f"; many in {some(dead)}" if dead else ""
    yield Check("rows", WARNING if dead else OK, detail + dead)
    detail = f"{min(scales):.4g} to {max(scales):.4g}"
    odd = f"; unusual: {some(odd_scales)}" if odd_scales else ""
    yield Check("scales", WARNING if odd else OK, detail + odd)


def _counts(t):
    """(weights that are -1, 0, +1: int64 (3,), rows that are all 0, scales) of a linear layer."""
    scales, chunks = t.read()
    n_zeros = n_ones = n_zero_rows = 0
    for codes in chunks:
        zeros = codes == 1
        n_zeros += np.count_nonzero(zeros)
        n_ones += np.count_nonzero(codes == 2)
        n_zero_rows += np.count_nonzero(zeros.all(axis=1))
    n = t.n_rows * t.n_cols
    return np.array([n - n_zeros - n_ones, n_zeros, n_ones]), n_zero_rows, scales


def _percentages(shares):
    return ", ".join(f"{name} {s:.1%}" for name, s in zip(("-1", "0", "+1"), shares, strict=True))


# floats -------------------------------------------------------------------------------------------


def check_norms(checkpoint):
    """Check "norms": finite, and of the size and sign that norms have."""
    bad, odd, values = [], [], {}
    for name, tensor in checkpoint.floats.items():
        if len(tensor.shape) == 1:
            try:
                values[name] = checkpoint.vector(name)
            except FormatError as error:
                bad.append(reason(error, checkpoint.path))
    for name, weight in values.items():
        largest = np.abs(weight).max()
        if not largest:
            odd.append(f"{name} is all 0")
        elif largest > MAX_NORM:
            odd.append(f"{name} reaches {largest:g}")
    if bad:
        yield Check("norms", FAILED, some(bad))
        return
    is_added = checkpoint.config.arch.is_projection_norm
    native = [weight for name, weight in values.items() if not is_added(name)]
    odd += _offsets(np.concatenate(native), checkpoint)
    means = [float(w.mean()) for w in values.values()]
    detail = f"{len(values)} vectors, means {min(means):.3g} to {max(means):.3g}"
    odd = f"; unusual: {some(odd)}" if odd else ""
    yield Check("norms", WARNING if odd else OK, detail + odd)


def _offsets(weights, checkpoint):
    """Norms that were stored less 1 and are applied as they are, or the other way round.

    Weights within a millionth of 0 are dead channels, which 2B-4T has, and have no sign.
    """
    if np.mean(weights < -1e-6) > MAX_NEGATIVE:
        hint = "; Gemma's are stored less 1 in Hugging Face files alone"
        return [f"they centre on 0{hint if checkpoint.config.arch.norms_are_offsets else ''}"]
    below_1 = np.mean(weights < 1)
    if checkpoint.config.norms_are_offsets and below_1 < MIN_BELOW_1 and np.median(weights) > 1:
        return [f"{below_1:.1%} are below 1: it may have been added twice"]
    return []


def check_rows(checkpoint, is_text, progress):
    """Checks "embedding" and "head": finite, and no empty row where a token of text needs it.

    is_text: a function of a token id, None without a tokenizer.
    """
    for name, tensor in checkpoint.floats.items():
        if len(tensor.shape) == 2:
            progress(f"weights: {name}")
            label = "embedding" if name == "embed_tokens" else "head"
            yield _check_matrix(label, tensor, is_text)


def _check_matrix(label, tensor, is_text):
    peaks = np.concatenate([np.abs(rows).max(axis=1) for rows in row_steps(tensor)])
    bad = np.flatnonzero(~np.isfinite(peaks))  # NaN stays in a maximum
    if len(bad):
        rows = f"{len(bad)} of {len(peaks):,} rows are NaN or infinite, the first is {bad[0]}"
        return Check(label, FAILED, f"{tensor.name}: {rows}")
    detail = f"{tensor.type}, {len(peaks):,} rows, largest |value| {peaks.max():.4g}"
    empty = np.flatnonzero(peaks == 0)
    of_text = [i for i in empty.tolist() if is_text is None or is_text(i)]
    if len(empty):
        detail += f"; {len(empty):,} rows are all 0"
    if of_text and is_text:
        detail += f", {len(of_text):,} of them of tokens that texts have, the first is {of_text[0]}"
    return Check(label, WARNING if of_text else OK, detail)


def row_steps(tensor):
    """The rows of an embedding or head, float32 (some, n_cols) at a time."""
    return dequantize_steps(tensor.type, tensor.rows(), tensor.shape[1])
