"""The weights of one model by themselves: codes, scales, norms, embedding; some rows at a time."""

import numpy as np

from ..errors import FormatError
from ..formats.float_blocks import dequantize_steps
from .result import FAILED, OK, WARNING, Check, reason, some

MIN_ZEROS, MAX_ZEROS = 0.01, 0.95  # share of a tensor; quantising by the mean gives about 0.31
# share of zeros of a whole model with scales of groups: training leaves 0.33, rounding of floats
# that were never trained so about 0.8, as the largest weight of a group is far out
MAX_TRAINED_ZEROS = 0.65
MAX_ZERO_ROWS = 0.1  # share of a tensor: a few outputs do die in training
MIN_SCALE, MAX_SCALE = 1e-6, 100.0  # scale of a tensor: no model is trained to others
MAX_NORM = 1e4  # |weight| of a norm that is not reported as unusual
MAX_NEGATIVE = 0.25  # share of a model's norm weights; those stored less 1 have about a half
MIN_BELOW_1 = 1e-3  # share of Gemma's norm weights: its post norms are small


def check_ternary(checkpoint, progress):
    """Checks "codes", "shares", "rows" and "scales" of every ternary tensor."""
    counts, bad, odd, dead, scales, odd_scales = np.zeros(3, np.int64), [], [], [], [], []
    n_dead = n_rows = 0
    for i, (name, t) in enumerate(checkpoint.ternary.items(), 1):
        progress(f"weights: {name}", i, len(checkpoint.ternary))
        try:
            of_tensor, zero_rows, low, high = _counts(checkpoint, name)
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
        scales += [low, high]
        is_odd_low = low < MIN_SCALE and not checkpoint.has_group_scales  # of a group, it may be
        if is_odd_low or high > MAX_SCALE:
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
    if checkpoint.has_group_scales and shares[1] > MAX_TRAINED_ZEROS:
        odd = f"{whole}: so many zeros that it was never trained ternary, but rounded afterwards"
    yield Check("shares", WARNING if odd else OK, odd or whole, figures)
    detail = f"{n_dead:,} of {n_rows:,} rows are all 0"
    dead = f"; many in {some(dead)}" if dead else ""
    yield Check("rows", WARNING if dead else OK, detail + dead)
    detail = f"{min(scales):.4g} to {max(scales):.4g}"
    odd = f"; unusual: {some(odd_scales)}" if odd_scales else ""
    yield Check("scales", WARNING if odd else OK, detail + odd)


def _counts(checkpoint, name):
    """(weights that are -1, 0, +1: int64 (3,), rows that are all 0, the smallest and the largest
    scale above 0) of a ternary tensor."""
    counts, n_zero_rows, low, high = np.zeros(3, np.int64), 0, np.inf, 0.0
    for scales, codes in checkpoint.steps(name):
        above = scales[scales > 0]
        low, high = min(low, above.min(initial=np.inf)), max(high, above.max(initial=0))
        codes = weights_of(scales, codes)
        n_zero_rows += np.count_nonzero((codes == 1).all(axis=1))
        n_ones, n_zeros = (np.count_nonzero(codes == code) for code in (2, 1))
        counts += np.array([codes.size - n_zeros - n_ones, n_zeros, n_ones])
    return counts, n_zero_rows, float(min(low, high)), float(high)


def weights_of(scales, codes):
    """The codes, with those of weight 0 where a group's scale is 0."""
    if scales.all():
        return codes
    by_group = codes.reshape(*scales.shape, -1)
    return np.where(scales[:, :, None] == 0, np.uint8(1), by_group).reshape(codes.shape)


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
    for name in tables(checkpoint):
        progress(f"weights: {name}")
        label = "embedding" if name == "embed_tokens" else "head"
        yield _check_matrix(label, checkpoint, name, is_text)


def _check_matrix(label, checkpoint, name, is_text):
    tensor = tensor_of(checkpoint, name)
    try:
        return _check_values(label, checkpoint, name, is_text)
    except FormatError as error:
        return Check(label, FAILED, f"{tensor.name}: {reason(error, checkpoint.path)}")


def _check_values(label, checkpoint, name, is_text):
    tensor = tensor_of(checkpoint, name)
    peaks = np.concatenate([np.abs(rows).max(axis=1) for rows in row_steps(checkpoint, name)])
    bad = np.flatnonzero(~np.isfinite(peaks))  # NaN stays in a maximum
    if len(bad):
        rows = f"{len(bad)} of {len(peaks):,} rows are NaN or infinite, the first is {bad[0]}"
        return Check(label, FAILED, f"{tensor.name}: {rows}")
    detail = f"{type_of(checkpoint, name)}, {len(peaks):,} rows, largest |value| {peaks.max():.4g}"
    empty = np.flatnonzero(peaks == 0)
    of_text = [i for i in empty.tolist() if is_text is None or is_text(i)]
    if len(empty):
        detail += f"; {len(empty):,} rows are all 0"
    if of_text and is_text:
        detail += f", {len(of_text):,} of them of tokens that texts have, the first is {of_text[0]}"
    return Check(label, WARNING if of_text else OK, detail)


def tables(checkpoint):
    """The embedding and the head, which may be the same."""
    return list(dict.fromkeys(checkpoint.table(name) for name in ("embed_tokens", "lm_head")))


def tensor_of(checkpoint, name):
    """The Tensor of an embedding or head."""
    ternary = checkpoint.ternary.get(name)
    return checkpoint.floats[name] if ternary is None else ternary.tensor


def type_of(checkpoint, name):
    """What an embedding or head is stored as, for people."""
    ternary = checkpoint.ternary.get(name)
    return checkpoint.floats[name].type if ternary is None else ternary.stored_as


def row_steps(checkpoint, name):
    """The rows of an embedding or head, float32 (some, n_cols) at a time."""
    if name not in checkpoint.ternary:
        tensor = checkpoint.floats[name]
        yield from dequantize_steps(tensor.type, tensor.rows(), tensor.shape[1])
        return
    for scales, codes in checkpoint.steps(name):
        weights = codes.reshape(*scales.shape, -1).astype(np.float32) - 1
        yield (scales[:, :, None] * weights).reshape(codes.shape)
