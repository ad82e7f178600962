"""Two files of one model, held against each other: configuration, weights, text, hidden states."""

import numpy as np

from ..checkpoints.checkpoint import I2_S_LAYOUTS
from ..errors import FormatError, TemplateError
from ..formats import ternary_layouts
from ..formats.ternary_layouts import join_codes
from ..models.rope import row_order
from ..models.rope_scaling import RopeScaling
from .result import FAILED, OK, WARNING, Check, reason, some
from .running import Run
from .tensors import row_steps, type_of, weights_of
from .text import MESSAGE, REPLY, SAMPLES

SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim")  # fmt: skip
MEANING = (
    "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "embedding_scale", "pooling",
)  # fmt: skip
MINOR = ("vocab_size", "max_position_embeddings", "bos_token_id", "do_sample",
         "temperature", "top_k", "top_p")  # fmt: skip

ROUNDING = 2**-8  # relative: a bfloat16, or the inverse of one, is off by no more
ROUNDED_CODES = 1e-3  # share of codes that other arithmetic makes of the same masters
REQUANTIZED = 0.02  # relative: a ratio of scales so near the share of nonzero weights is explained
# Relative RMS that a type of few bits may cost an embedding or head, with a margin; others:
# ROUNDING
TYPE_ROUNDING = {"Q8_0": 0.01, "Q6_K": 0.03, "Q5_0": 0.06, "Q5_1": 0.06, "Q5_K": 0.06,
                 "Q4_0": 0.15, "Q4_1": 0.15, "Q4_K": 0.15, "IQ4_NL": 0.15}  # fmt: skip
# Rounding x to int8 is a step: engines, and graphs of another order of sums, differ by 1e-2 or so.
MAX_RMS, MAX_RMS_WARNING = 0.05, 0.3  # relative RMS of the logits: ok, and no worse than a warning
MIN_COSINE = 0.999  # of hidden states; the first layer below it is named


def check_config(a, b):
    """Checks "= shape" and "= configuration" of two Checkpoints."""
    different = _differences(a.config, b.config, SHAPE)
    if not a.config.arch.has_graph_of(b.config.arch):
        different.append(f"family: {a.config.family}, against {b.config.family}")
    if different:
        yield Check("= shape", FAILED, some(different, 6))
        return
    yield Check("= shape", OK, "the same")
    different = _differences(a.config, b.config, MEANING)
    if _windows(a.config) != _windows(b.config):
        different.append("sliding windows")
    if different:
        yield Check("= configuration", FAILED, some(different, 6))
        return
    minor = _differences(a.config, b.config, MINOR)
    yield Check("= configuration", WARNING if minor else OK, some(minor, 6) or "the same")


def _differences(a, b, names):
    different = []
    for name in names:
        ours, theirs = (_meaning(getattr(config, name)) for config in (a, b))
        if ours != theirs:
            different.append(f"{name}: {ours}, against {theirs}")
    return different


def _meaning(value):
    """A value as both containers can hold it: GGUF has float32."""
    if isinstance(value, RopeScaling):
        return str(value)
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _windows(config):
    """(positions a layer sees, its RoPE base) of every layer."""
    flags = config.sliding_layers or (False,) * config.num_hidden_layers
    return [
        (config.sliding_window, np.float32(config.rope_local_theta)) if slides else (0, None)
        for slides in flags
    ]


# ternary weights ----------------------------------------------------------------------------------


def check_ternary(a, b, progress):
    """Checks "= codes" and "= scales" of two Checkpoints of one shape."""
    n_different, different, ratios, nonzero, bad = 0, [], {}, {}, []
    names = [name for name in a.ternary if name in b.ternary]  # a table may be floats in one
    for i, name in enumerate(names, 1):
        progress(f"comparing {name}", i, len(names))
        try:
            n, nonzero[name], ratios[name] = _compare(a, b, name)
        except FormatError as error:
            bad.append(reason(error, a.path))
            continue
        if n:
            n_different += n
            different.append((n / (a.ternary[name].n_rows * a.ternary[name].n_cols), name, n))
    if bad:
        yield Check("= codes", FAILED, some(bad))
    else:
        yield _check_codes(a, b, different, n_different)
    if ratios:
        yield _check_scales(ratios, nonzero, a, b)


def _compare(a, b, name):
    """(weights that differ, share of a's that are not 0, the ratio of the scales that is worst)."""
    (ours_scales, ours_codes), (theirs_scales, theirs_codes) = (_read(c, name) for c in (a, b))
    n_different = n_zeros = 0
    for ours, theirs in in_step(ours_codes, theirs_codes):
        n_different += np.count_nonzero(ours != theirs)
        n_zeros += np.count_nonzero(ours == 1)
    t = a.ternary[name]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = ours_scales.astype(np.float64) / theirs_scales
    ratio[(ours_scales == 0) | (theirs_scales == 0)] = 1  # their codes tell them apart
    worst = ratio.flat[np.abs(np.log(ratio)).argmax()]
    return int(n_different), 1 - n_zeros / (t.n_rows * t.n_cols), float(worst)


def _read(checkpoint, name):
    """(scales, chunks of codes) with rows in the order of Hugging Face files.

    scales: float32 (n_rows, n_groups), complete when the last chunk was taken: of groups of 64
    columns, 0 for one without weights; or (n_rows, 1) where rows have one.
    """
    t, by_group = checkpoint.ternary[name], checkpoint.has_group_scales
    scales = np.zeros((t.n_rows, t.n_cols // 64 if by_group else 1), np.float32)

    def chunks():
        row = 0
        for stored, codes in checkpoint.steps(name):
            codes = weights_of(stored, codes)
            rows = scales[row : row + len(codes)]
            rows[:] = np.repeat(stored, scales.shape[1] // stored.shape[1], axis=1)
            if by_group:
                rows[(codes == 1).reshape(*rows.shape, 64).all(axis=2)] = 0
            row += len(codes)
            yield codes

    order = _hf_order(checkpoint.config, name, t.n_rows)
    if order is None:
        return scales, chunks()
    codes = join_codes(chunks(), t.n_rows, t.n_cols)[order]
    return scales[order], [codes]


def _read_codes(checkpoint, name):
    """All codes of the same, uint8 (n_rows, n_cols)."""
    t = checkpoint.ternary[name]
    return join_codes(_read(checkpoint, name)[1], t.n_rows, t.n_cols)


def _hf_order(config, name, n_rows):
    """Which row of a linear each row is in Hugging Face files, None where all are the same."""
    if not config.rope_interleaved or not config.arch.is_rotated(name):
        return None
    return row_order(n_rows, config.head_dim, interleaved=True)


def in_step(first, second):
    """Pairs of arrays of the same rows, from two iterables of chunks of as many rows in all."""
    second, theirs = iter(second), ()
    for ours in first:
        while len(ours):
            if not len(theirs):
                theirs = next(second)
            n = min(len(ours), len(theirs))
            yield ours[:n], theirs[:n]
            ours, theirs = ours[n:], theirs[n:]


def _check_codes(a, b, different, n_different):
    figures = {"different": n_different, "tensors": len(different)}
    if not different:
        n = sum(name in b.ternary for name in a.ternary)
        return Check("= codes", OK, f"{n} tensors, equal weight for weight", figures)
    different.sort(reverse=True)
    share, name, _ = different[0]
    detail = f"{n_different:,} weights of {len(different)} tensors differ: "
    detail += some([f"{name} {n:,} ({share:.2%})" for share, name, n in different])
    are_masters = any(checkpoint.ternary[name].are_masters for checkpoint in (a, b))
    if are_masters and share < ROUNDED_CODES:
        detail += "; so few, other rounding of the masters may have done it"
        return Check("= codes", WARNING, detail, figures)
    return Check("= codes", FAILED, detail + _diagnosis(a, b, name), figures)


def _diagnosis(a, b, name):
    """What would make a tensor equal in both, "" if nothing known does."""
    for checkpoint, other, how in ((a, b, "the file with --"), (b, a, "SRC with --against-")):
        t = checkpoint.ternary[name]
        meant = _read_codes(other, name)
        for layout, type_name in I2_S_LAYOUTS.items():
            if t.tensor.type == "I2_S" and type_name != t.stored_as:
                codes = _codes_as(type_name, checkpoint, name)
                if codes is not None and (codes == meant).all():
                    return f"; {name} is equal if one reads {how}layout {layout}"
    if a.config.arch.is_rotated(name):
        ours, theirs = (_read_codes(checkpoint, name) for checkpoint in (a, b))
        order = row_order(len(ours), a.config.head_dim, interleaved=True)
        if (ours[order] == theirs).all() or (ours == theirs[order]).all():
            return f"; the rows of {name} are in the order of the other kind of RoPE"
    return ""


def _codes_as(type_name, checkpoint, name):
    """The codes of an I2_S tensor in another layout, None where it cannot be."""
    t = checkpoint.ternary[name]
    try:
        _, chunks = ternary_layouts.unpack(type_name, t.tensor.data, t.n_rows, t.n_cols)
        codes = join_codes(chunks, t.n_rows, t.n_cols)
    except ValueError:
        return None
    order = _hf_order(checkpoint.config, name, t.n_rows)
    return codes if order is None else codes[order]


def _check_scales(ratios, nonzero, a, b):
    worst = max(ratios, key=lambda name: abs(np.log(ratios[name])))
    ratio, figures = ratios[worst], {"worst": worst, "ratio": ratios[worst]}
    if abs(ratio - 1) <= ROUNDING:
        exact = all(r == 1 for r in ratios.values())
        detail = "equal" if exact else f"equal within rounding: {worst} by {abs(ratio - 1):.2g}"
        return Check("= scales", OK, detail, figures)
    n = sum(abs(r - 1) > ROUNDING for r in ratios.values())
    detail = f"{n} of {len(ratios)} differ: that of {worst} is {ratio:.4g} times the other"
    return Check("= scales", FAILED, detail + _why(ratio, nonzero[worst], worst, a, b), figures)


def _why(ratio, nonzero, name, a, b):
    if a.has_group_scales or b.has_group_scales:
        return ""
    theirs = float(b.ternary[name].scales()[0, 0])
    for value, which in ((ratio, "the file's"), (1 / ratio, "SRC's")):
        if abs(value / nonzero - 1) < REQUANTIZED:
            return (f", the share of weights other than 0: {which} is the mean of weights that "
                    "were ternary already, quantised a second time")  # fmt: skip
    if abs(ratio * theirs**2 - 1) < ROUNDING:
        return ": one is the inverse of the other; some files multiply by it and some divide"
    return ""


# floats -------------------------------------------------------------------------------------------


def check_floats(a, b, progress):
    """Checks "= norms", "= embedding" and "= head" of two Checkpoints of one shape."""
    errors = {}
    for name, tensor in a.floats.items():
        if len(tensor.shape) == 1:
            try:
                ours, theirs = (_norm(checkpoint, name) for checkpoint in (a, b))
            except FormatError as error:
                yield Check("= norms", FAILED, reason(error, a.path))
                return
            errors[name] = (relative_rms(ours, theirs), float(np.abs(ours - theirs).max()))
    worst = max(errors, key=errors.get)
    error = _error(*errors[worst])
    detail = f"{len(errors)} vectors, {error if error == 'equal' else f'{worst}: {error}'}"
    yield Check("= norms", OK if errors[worst][0] <= ROUNDING else FAILED, detail)
    tied = a.config.tie_word_embeddings and b.config.tie_word_embeddings
    for name, label in (("embed_tokens", "= embedding"), ("lm_head", "= head"))[: 1 if tied else 2]:
        progress(f"comparing {name}")
        yield _check_matrices(label, (a, a.table(name)), (b, b.table(name)))


def _norm(checkpoint, name):
    """A norm as it works: some files hold the query scale in the norm of the queries."""
    values, config = checkpoint.vector(name).astype(np.float64), checkpoint.config
    return values * config.query_scale if config.arch.is_query_norm(name) else values


def _check_matrices(label, a, b):
    """Rows that both have, dequantised, of two (Checkpoint, tensor's name)."""
    try:
        return _compare_matrices(label, a, b)
    except FormatError as error:
        return Check(label, FAILED, reason(error, a[0].path))


def _compare_matrices(label, *tables):
    a, b = (type_of(*table) for table in tables)
    n_rows = min(checkpoint.config.vocab_size for checkpoint, _ in tables)
    squares, largest, total = 0.0, 0.0, 0.0
    for ours, theirs in in_step(*(_up_to(n_rows, row_steps(*table)) for table in tables)):
        difference = np.abs(ours - theirs)
        largest = max(largest, float(difference.max()))
        squares += float(np.square(difference, dtype=np.float64).sum())
        total += float(np.square(theirs, dtype=np.float64).sum())
    error = np.sqrt(squares / total) if total else np.sqrt(squares)
    limit = ROUNDING + TYPE_ROUNDING.get(a, 0) + TYPE_ROUNDING.get(b, 0)
    detail = f"{a} against {b}: {_error(error, largest)}"
    all_rows = [checkpoint.config.vocab_size for checkpoint, _ in tables]
    if all_rows[0] != all_rows[1]:
        detail += f"; {all_rows[0]:,} rows against {all_rows[1]:,}"
    return Check(label, OK if error <= limit else FAILED, detail, {"relative_rms": float(error)})


def _up_to(n_rows, chunks):
    for chunk in chunks:
        yield chunk[:n_rows]
        n_rows -= min(n_rows, len(chunk))


def _error(relative, largest):
    return "equal" if largest == 0 else f"relative RMS {relative:.2g}, largest {largest:.2g}"


def relative_rms(ours, theirs):
    """sqrt(sum((ours - theirs)^2) / sum(theirs^2)), in float64."""
    squares = total = 0.0
    for a, b in zip(np.atleast_2d(ours), np.atleast_2d(theirs), strict=True):
        b = b.astype(np.float64)
        squares, total = squares + np.square(a - b).sum(), total + np.square(b).sum()
    return float(np.sqrt(squares / total if total else squares))


# text and hidden states ---------------------------------------------------------------------------


def check_tokens(ours, theirs):
    """Check "= tokens" of two Tokenizers, either of which may be None."""
    if ours is None or theirs is None:
        if ours is theirs:
            return Check("= tokens", OK, "neither has a tokenizer")
        return Check(
            "= tokens", WARNING, f"{'the file' if ours is None else 'SRC'} has no tokenizer"
        )
    for name, text in SAMPLES.items():
        ids = [t.encode(text, add_bos=False, parse_special=True) for t in (ours, theirs)]
        if ids[0] != ids[1]:
            return Check("= tokens", FAILED, f"{name} text: {ids[0][:12]}, against {ids[1][:12]}")
    begins = [t.encode("a")[:2] for t in (ours, theirs)]
    if begins[0] != begins[1]:
        return Check("= tokens", FAILED, f"a text begins {begins[0]}, against {begins[1]}")
    stops = [sorted(t.eos_ids) for t in (ours, theirs)]
    if stops[0] != stops[1]:
        return Check("= tokens", WARNING, f"stop tokens: {stops[0]}, against {stops[1]}")
    return _check_templates(ours.chat_template, theirs.chat_template)


def _check_templates(ours, theirs):
    if (ours is None) != (theirs is None):
        return Check(
            "= tokens", WARNING, f"{'SRC' if ours else 'the file'} alone lacks a chat template"
        )
    if ours is not None:
        talk = [{"role": "user", "content": MESSAGE}, {"role": "assistant", "content": REPLY}]
        try:
            texts = [template.render(talk) for template in (ours, theirs)]
        except TemplateError as error:
            return Check("= tokens", WARNING, f"not compared: {error}")
        if texts[0] != texts[1]:
            return Check("= tokens", WARNING, f"chat: {texts[0]!r}, against {texts[1]!r}")
    return Check("= tokens", OK, f"{len(SAMPLES)} texts, begin and stop tokens, chat template")


def check_hidden(a_files, b_files, ids, threads):
    """Checks "= hidden states" and "= logits" (or "= embedding of a text") of the same tokens."""
    theirs, cosines = [], []
    other = Run(b_files, ids, threads, lambda i, hidden: theirs.append(hidden.copy()))
    run = Run(a_files, ids, threads,
              lambda i, hidden: cosines.append(_min_cosine(hidden, theirs[i])))  # fmt: skip
    worst = int(np.argmin(cosines))
    detail = f"lowest cosine {cosines[worst]:.6f}, in layer {worst}"
    first = next((i for i, cosine in enumerate(cosines) if cosine < MIN_COSINE), None)
    if first is not None:
        detail += f"; the first layer below {MIN_COSINE} is {first} ({cosines[first]:.6f})"
    n_cols = min(run.output.shape[1], other.output.shape[1])
    error = relative_rms(run.output[:, :n_cols], other.output[:, :n_cols])
    status = OK if error <= MAX_RMS else WARNING if error <= MAX_RMS_WARNING else FAILED
    yield Check(
        "= hidden states", status if first is not None else OK, detail, {"cosines": cosines}
    )
    same = (run.output.argmax(axis=1) == other.output.argmax(axis=1)).mean()
    figures = {"relative_rms": error, "same_argmax": float(same)}
    if a_files.config.pooling is None:
        detail = f"relative RMS {error:.2g}, the same token is likeliest at {same:.1%} of places"
        yield Check("= logits", status, detail, figures)
    else:
        cosine = float(run.embedding @ other.embedding)
        yield Check("= text embedding", status, f"cosine {cosine:.6f}", {"cosine": cosine})


def _min_cosine(ours, theirs):
    """The lowest cosine of two rows of the same token."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = (ours * theirs).sum(axis=1)
    cosines = np.divide(products, lengths, out=np.ones_like(products), where=lengths > 0)
    return float(cosines.min())
