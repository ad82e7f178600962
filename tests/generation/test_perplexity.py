"""Perplexity by its definition, by llama.cpp's windows and Hugging Face's recipe; saved logits."""

import json
import math
import os

import numpy as np
import pytest
from support.paths import DATA
from support.talker import TALKER

import bitnet
from bitnet import ContextFull, FormatError
from bitnet.api.load import BUNDLED_MODEL
from bitnet.cli import main
from bitnet.generation import perplexity as made
from bitnet.generation.comparison import compare_rows
from bitnet.generation.saved_logits import SavedLogits

TEXT = DATA / "heldout.txt"


@pytest.fixture(scope="module")
def model():
    with bitnet.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def text():
    return TEXT.read_text().removesuffix("\n")


def log_softmax(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def scores(model, part, first):
    """Log probabilities of the tokens of part from first on, all logits at once."""
    rows = log_softmax(model.logits(part[:-1]))
    return [rows[i - 1, part[i]] for i in range(first, len(part))]


def as_llama_cpp(model, ids, n_ctx, stride=None):
    """As tools/perplexity/perplexity.cpp goes, for a model with a begin token."""
    bos = ids[0]
    if stride is not None:
        n_ctx += stride // 2
    nll, n, n_windows = 0.0, 0, 0
    if stride is None:
        for i in range(len(ids) // n_ctx):
            part = ids[i * n_ctx : (i + 1) * n_ctx]
            part[0] = bos
            found = scores(model, part, n_ctx // 2 + 1)
            nll, n, n_windows = nll - sum(found), n + len(found), n_windows + 1
    else:
        for i in range((len(ids) - n_ctx + stride - 1) // stride):
            part = ids[i * stride :][:n_ctx]
            found = scores(model, part, n_ctx - stride)
            nll, n, n_windows = nll - sum(found), n + len(found), n_windows + 1
    return math.exp(nll / n), n, n_windows


def as_hugging_face(model, ids, max_length, stride):
    """The loop of transformers' page on perplexity."""
    nll_sum, n_tokens, prev_end, scored, n_windows = 0.0, 0, 0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        trg_len = end - prev_end
        found = scores(model, ids[begin:end], max(1, end - begin - trg_len))
        nll_sum += -np.mean(found) * (trg_len - 1)
        n_tokens += trg_len - 1
        scored, n_windows = scored + len(found), n_windows + 1
        prev_end = end
        if end == len(ids):
            break
    return math.exp(nll_sum / n_tokens), scored, n_windows


@pytest.mark.parametrize("context", [64, 100, 255, 512])
def test_windows_beside_each_other(model, text, context):
    ids = model.tokenizer.encode(text)
    assert ids[0] == model.tokenizer.bos_id
    found = bitnet.perplexity(model, text, context=context)
    expected, n, n_windows = as_llama_cpp(model, ids, context)
    assert found.perplexity == pytest.approx(expected, rel=1e-6)
    assert (found.n_tokens, found.n_windows) == (n, n_windows)
    assert bitnet.perplexity(model, ids, context=context) == found


@pytest.mark.parametrize(("context", "stride"), [(64, 16), (128, 128), (100, 33)])
def test_windows_with_a_stride(model, text, context, stride):
    found = bitnet.perplexity(model, text, context=context, stride=stride)
    expected, n, n_windows = as_llama_cpp(model, model.tokenizer.encode(text), context, stride)
    assert found.perplexity == pytest.approx(expected, rel=1e-6)
    assert (found.n_tokens, found.n_windows) == (n, n_windows)


@pytest.mark.parametrize(("context", "stride"), [(256, 64), (128, 128), (512, 500), (511, None)])
def test_the_recipe_of_hugging_face(model, text, context, stride):
    found = bitnet.perplexity(model, text, context=context, stride=stride, recipe="huggingface")
    ids = model.tokenizer.encode(text)
    expected, n, n_windows = as_hugging_face(model, ids, context, stride or 511)
    assert found.perplexity == pytest.approx(expected, rel=1e-6)
    assert (found.n_tokens, found.n_windows) == (n, n_windows)


def test_bits_per_byte_and_error(model, text):
    ids = model.tokenizer.encode(text)
    window = ids[:400]
    found = bitnet.perplexity(model, window, context=400, recipe="huggingface")
    values = scores(model, window, 1)
    n_bytes = len(model.tokenizer.decode(window).encode())
    assert found.bits_per_byte == pytest.approx(-sum(values) / math.log(2) / n_bytes, rel=1e-6)
    error = np.std(values) / math.sqrt(len(values) - 1) * found.perplexity
    assert found.error == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 3}, "context: 3"),
        ({"stride": 0}, "stride: 0"),
        ({"stride": 600}, "stride: 600"),
        ({"recipe": "mine"}, "recipe: 'mine'"),
        ({"chunks": 0}, "chunks: 0"),
        ({"context": 1000}, r"text: \d+ tokens \(at least 2000"),
        ({"stride": 64, "save_logits": "x"}, "save_logits"),
    ],
)
def test_what_cannot_be(model, text, options, message):
    with pytest.raises(ValueError, match=message):
        bitnet.perplexity(model, text, **options)


def test_windows_longer_than_the_models_context(text):
    with bitnet.load(threads=1, context=256) as model:
        assert bitnet.perplexity(model, text, context=257, chunks=1).n_tokens == 128
        with pytest.raises(ContextFull):
            bitnet.perplexity(model, text, context=258)


def test_a_text_too_short_for_anything():
    with pytest.raises(ValueError, match="text: 1 tokens"):
        made.windows(1, 64, recipe="huggingface")
    assert made.windows(2, 64, recipe="huggingface") == [made.Window(0, 2, 1, False, 1)]


# two models ---------------------------------------------------------------------------------------


def test_a_comparison_by_its_definition(model, text):
    with bitnet.load(threads=1, kv_dtype="int8") as other:
        found = bitnet.compare(model, other, text, context=128, chunks=3)
        ids = model.tokenizer.encode(text)
        rows = []
        for one in (model, other):
            parts = [[ids[0], *ids[i * 128 + 1 : (i + 1) * 128]] for i in range(3)]
            rows.append(np.concatenate([log_softmax(one.logits(p[:-1]))[64:] for p in parts]))
    divergences = (np.exp(rows[0]) * (rows[0] - rows[1])).sum(axis=1)
    assert found.kl == pytest.approx(divergences.mean(), rel=1e-3)
    assert found.kl_max == pytest.approx(divergences.max(), rel=1e-3)
    assert found.same_top == (rows[0].argmax(axis=1) == rows[1].argmax(axis=1)).mean()
    assert [p.at for p in found.positions] == [
        i * 128 + j for i in range(3) for j in range(65, 128)
    ]
    assert [p.token_id for p in found.positions] == [ids[p.at] for p in found.positions]
    assert found.a == bitnet.perplexity(model, text, context=128, chunks=3)
    assert found.b.perplexity != found.a.perplexity and 0 < found.kl < 0.01


def test_saved_logits_stand_for_the_model(model, text, tmp_path):
    plain = bitnet.perplexity(model, text, context=128, chunks=4)
    path = tmp_path / "logits"
    assert bitnet.perplexity(model, text, context=128, chunks=4, save_logits=path) == plain
    assert path.stat().st_size == 8 + 12 + 4 * 512 + 2 * 4 * 63 * (2048 + 4)
    for pair in ((path, model), (model, path)):
        found = bitnet.compare(*pair)
        assert found.kl < 1e-6 and found.same_top == 1 and len(found.positions) == 4 * 63
        assert found.a.perplexity == pytest.approx(plain.perplexity, rel=1e-5)
    same = bitnet.compare(path, path)
    assert (same.kl, same.same_top, same.rms_dp) == (0, 1, 0)
    assert bitnet.compare(path, model, text, context=128, chunks=2).b.n_windows == 2
    with bitnet.load(threads=1, kv_dtype="int8") as other:
        direct = bitnet.compare(model, other, text, context=128, chunks=4)
        assert bitnet.compare(path, other).kl == pytest.approx(direct.kl, rel=0.01)


def test_a_token_that_saved_logits_have_cut_off():
    """It counts as 16 nats below the likeliest, as llama-perplexity has it; of a model as it is."""
    a = log_softmax(np.array([20.0, 18.0, 1.0]))
    cut = np.where(a < a.max() - 16, -np.inf, a)
    found = [compare_rows(0, 2, row, a) for row in (a, cut)]
    assert [one.log_p_a for one in found] == [a[2], a.max() - 16]
    assert found[1].log_p_b == a[2] and found[1].kl == 0


def test_saved_logits_of_something_else(model, text, tmp_path):
    path = tmp_path / "logits"
    bitnet.perplexity(model, text, context=128, chunks=2, save_logits=path)
    raw = path.read_bytes()
    with pytest.raises(FormatError, match="token ids: others"):
        bitnet.compare(path, model, "something else " * 200, context=128)
    with pytest.raises(FormatError, match="context: 128"):
        bitnet.compare(path, model, text, context=64)
    with (
        bitnet.load(TALKER) as other,
        pytest.raises(ValueError, match="vocab_size: 2048 of a, 384"),
    ):
        bitnet.compare(path, other)
    with pytest.raises(ValueError, match="one model"):
        bitnet.compare(model, model, text)
    with bitnet.load(threads=1) as twin, pytest.raises(ValueError, match="text: missing"):
        bitnet.compare(model, twin)
    for damaged, message in (
        (raw[:-1], "file size"),
        (raw + b"\0", "file size"),
        (b"_logits_" + b"\0" * 12 + raw[20:], "context: 0"),
        (b"_logits_" + b"\xff" * 12 + raw[20:], "context: -1"),
        (b"GGUF" + raw[4:], "magic"),
        (raw[:10], "magic"),
        (b"_logits_" + np.array([3, 2048, 1, 0, 0, 0], np.int32).tobytes(), "context: 3 "),
        (raw[:20] + b"\xff\xff\xff\x7f" + raw[24:], "token id: 2147483647"),
        (raw[:20] + b"\xff\xff\xff\xff" + raw[24:], "token id: -1"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=message):
            SavedLogits(path)
    begin = 20 + 4 * 2 * 128
    for at, value in ((0, np.nan), (4, np.nan), (0, -1), (0, np.inf)):
        damaged = bytearray(raw)
        damaged[begin + at : begin + at + 4] = np.float32(value).tobytes()
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"window 0.*scale"):
            bitnet.compare(path, model)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_saved_logits_from_and_to_what_is_no_file(model, text, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(FormatError, match="a regular file"):
        bitnet.compare(fifo, model)  # nobody writes: it would wait for ever
    read = []
    for path in (fifo, tmp_path):
        with pytest.raises(OSError, match=r"regular file|directory"):
            bitnet.perplexity(
                model, text, context=128, save_logits=path, progress=lambda *_: read.append(1)
            )
    assert not read and list(tmp_path.iterdir()) == [fifo] and fifo.is_fifo()


def test_the_commands(tmp_path, capsys, text):
    path = str(tmp_path / "logits")
    model = str(BUNDLED_MODEL)
    options = ["--context", "128", "--chunks", "3", "--threads", "1"]
    assert main(["perplexity", model, str(TEXT), *options, "--save-logits", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    with bitnet.load(threads=1) as loaded:
        expected = bitnet.perplexity(loaded, text, context=128, chunks=3)
    assert found.pop("seconds") > 0 and found.pop("model") == model
    assert found == expected.as_dict()
    assert main(["compare", path, model, str(TEXT), *options, "--b-kv-dtype", "f32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["a"]["n_windows"] == 3 and 0 < found["kl"] < 0.01 and "positions" not in found
    assert main(["compare", path, path, "--json", "--positions"]) == 0
    assert len(json.loads(capsys.readouterr().out)["positions"]) == 3 * 63
    assert main(["compare", path, model, str(TEXT), *options]) == 0
    assert "same top token" in capsys.readouterr().out
    (tmp_path / "binary").write_bytes(b"abc\xff")
    assert main(["perplexity", model, str(tmp_path / "binary")]) == 1
    assert "byte 3 is not UTF-8" in capsys.readouterr().err
