"""Arguments of load, limits, closing."""

import shutil

import numpy as np
import pytest
from support.talker import TALKER, kv_bytes

import bitnet
from bitnet import Cancelled, FormatError, MemoryLimitExceeded, PoolExhausted
from bitnet.api import load
from bitnet.formats.gguf import GGUFFile
from bitnet.models import transformer
from bitnet.runtime.pool import Pool

PROMPT = "A ternary weight has"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mapping": "swap"}, ValueError, "mapping: 'swap' .map or prefetch"),
        ({"kv_dtype": "int4"}, ValueError, "kv_dtype: 'int4'"),
        ({"slots": 0}, ValueError, "slots: 0"),
        ({"slots": 1.5}, ValueError, "slots: 1.5"),
        ({"threads": 0}, ValueError, "threads: 0"),
        ({"context": 0}, ValueError, "context: 0"),
        ({"context": 513}, ValueError, "context: 513 .*512"),
        ({"memory_limit": "lots"}, ValueError, "memory_limit: 'lots'"),
        ({"chat_template": " \n"}, ValueError, r"chat_template: ' \\n' .the text"),
        ({"chat_template": b"{{ x }}"}, TypeError, "chat_template: bytes"),
        ({"chat_template": "x" * (1 << 18 | 1)}, ValueError, "chat_template: 262145 char"),
        ({"memory_limit": 1000}, MemoryLimitExceeded, "memory_limit: 1000 bytes"),
        ({"memory_limit": "12MiB", "threads": 1}, MemoryLimitExceeded, "memory_limit: 12582912"),
    ],
)
def test_arguments_of_load(arguments, error, message):
    with pytest.raises(error, match=message):
        bitnet.load(TALKER, **arguments)


@pytest.mark.parametrize("path", [TALKER, None])
def test_another_chat_template(path):
    """Of a folder, and of a GGUF."""
    messages = [{"role": "user", "content": "Who art thou?"}]
    template = "{% for m in messages %}Say: {{ m.content }}\n{% endfor %}"
    with bitnet.load(path, threads=1, chat_template=template) as model:
        assert model.tokenizer.chat_template.source == template
        ids = model.tokenizer.encode("Say: Who art thou?\n")
        assert model.tokenizer.chat(messages) == ids
        assert model.chat(messages, max_tokens=2).prompt_tokens == len(ids)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        bitnet.load(tmp_path / "nothing.gguf")
    with pytest.raises(FormatError, match=r"config\.json"):
        bitnet.load(tmp_path)
    monkeypatch.setattr(load, "BUNDLED_MODEL", tmp_path / "model.gguf")
    with pytest.raises(FileNotFoundError, match="bundled model is missing"):
        bitnet.load()


def test_the_error_of_a_load_is_not_hidden_by_what_it_leaves(tmp_path, monkeypatch):
    """Arrays of the pool are alive in the frames of an error that ends a load half-way."""
    raw = bytearray(load.BUNDLED_MODEL.read_bytes())
    norm = GGUFFile(load.BUNDLED_MODEL).tensors["blk.0.attn_norm.weight"].data.tobytes()
    at = raw.index(norm)
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "nan.gguf").write_bytes(raw)
    with pytest.raises(FormatError, match=r"blk\.0\.attn_norm\.weight: NaN"):
        bitnet.load(tmp_path / "nan.gguf")


class Failing:
    """Stands for a class or function; its n-th call fails as where there is no memory."""

    def __init__(self, function, n):
        self.function, self.n = function, n

    def __call__(self, *arguments, **keywords):
        self.n -= 1
        if self.n == 0:
            raise MemoryError("refused here")
        return self.function(*arguments, **keywords)


@pytest.mark.parametrize("name", ["Matrix", "Batch", "Norm", "Linear", "Rope", "QuantizedRows"])
def test_memory_that_is_refused_anywhere_in_a_load(monkeypatch, name):
    function, n_refused = getattr(transformer, name), 0
    for n in range(1, 99):
        monkeypatch.setattr(transformer, name, Failing(function, n))
        try:
            bitnet.load(threads=1).close()
        except MemoryError as error:
            assert str(error) == "refused here"
            n_refused += 1
        else:
            break
    assert n_refused == n - 1 > 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, None),
        (123456, 123456),
        ("1.5GiB", 3 << 29),
        ("1.5G", 3 << 29),
        ("900M", 900 << 20),
        ("2GB", 2 * 10**9),
        ("64 KiB", 65536),
        ("7B", 7),
        ("1T", 1 << 40),
    ],
)
def test_sizes(text, size):
    assert load.parse_bytes("x", text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1G",
        "1.G",
        "1e9",
        "nanG",
        "0",
        "9999999T",
        "1PiB",
        "1 G B",
    ],
)
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="x: "):
        load.parse_bytes("x", text)


def test_the_memory_limit_holds(monkeypatch):
    with bitnet.load(TALKER, memory_limit="64MiB", threads=2) as limited:
        beside = sum(need.nbytes for need in limited.needs if need.where == "heap")
        assert limited.memory().pool.limit == (64 << 20) - beside
    monkeypatch.setenv("BITNET_MEMORY_LIMIT", "12MiB")
    with pytest.raises(MemoryLimitExceeded):
        bitnet.load(TALKER, threads=1)


def test_a_full_pool_ends_one_request_and_is_free_afterwards():
    with bitnet.load(TALKER, memory_limit="18MiB", slots=2, threads=1, prefix_cache=False) as small:
        sessions = []
        with pytest.raises(PoolExhausted, match="kv"):
            for _ in range(1000):
                sessions.append(small.session())
                sessions[-1].feed(range(200))
        with pytest.raises(PoolExhausted):
            small.generate([PROMPT] * 3, max_tokens=300, temperature=0)
        for session in sessions:
            session.close()
        assert small.generate(PROMPT, max_tokens=20, temperature=0).completion_tokens == 20
        assert kv_bytes(small) == 0


def test_nothing_works_after_close():
    loaded = bitnet.load(TALKER)
    stream, session = loaded.stream(PROMPT, temperature=0), loaded.session()
    next(stream)
    session.feed([1, 2])
    loaded.close()
    loaded.close()
    with pytest.raises(Cancelled):
        list(stream)
    for use in (
        lambda: loaded.generate("x"),
        lambda: loaded.logits([1]),
        lambda: session.feed([1]),
        loaded.memory,
        loaded.session,
        lambda: loaded.threads,
        lambda: loaded.stream("x"),
        lambda: loaded.loglikelihood([1], [2]),
        lambda: loaded.chat([]),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_closing_with_logits_alive():
    loaded = bitnet.load(TALKER)
    logits = loaded.session().feed([1, 2])
    with pytest.raises(BufferError):
        loaded.close()
    del logits
    loaded.close()


def test_an_error_in_the_with_block_is_not_hidden():
    with pytest.raises(ZeroDivisionError), bitnet.load(TALKER) as loaded:
        logits = loaded.session().feed([1, 2])
        assert logits.shape == (384,) and 1 // 0


def test_a_load_that_fails_late_keeps_nothing(monkeypatch):
    pools = []

    def fail(*arguments, **keywords):
        raise MemoryError("late")

    monkeypatch.setattr(load, "Pool", lambda limit: pools.append(Pool(limit)) or pools[-1])
    for name, late in (("_check_growth", fail), ("Model", type("Late", (), {"__init__": fail}))):
        monkeypatch.setattr(load, name, late)
        with pytest.raises(MemoryError, match="late"):
            bitnet.load(TALKER, memory_limit="1GiB")
    assert len(pools) == 2 and not any(pool.reserved for pool in pools)


def test_a_model_without_tokenizer(tmp_path, stored):
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(TALKER / name, tmp_path)
    with bitnet.load(tmp_path) as mute:
        done = mute.generate(stored["greedy_prompt"], temperature=0, max_tokens=10)
        assert done.token_ids == stored["greedy_ids"][:10].tolist()
        assert done.text == ""
        for use in (
            lambda: mute.generate("x"),
            lambda: mute.tokenizer,
            lambda: mute.generate([1], stop="x"),
        ):
            with pytest.raises(FormatError, match="tokenizer: missing"):
                use()


def test_options_that_do_not_exist(model):
    with pytest.raises(TypeError, match="top_kk"):
        model.generate("x", top_kk=1)
    with pytest.raises(ValueError, match="top_p: 0"):
        model.stream("x", top_p=0)  # at the call, not at the first piece
