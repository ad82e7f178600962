"""`bitnet inspect`: what it says of every form of model, and the memory it foretells."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from support import small_files, small_models
from support.paths import DATA

import bitnet
from bitnet.checkpoints import weights
from bitnet.checkpoints.memory_plan import plan, state_bytes
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.cli import main
from bitnet.errors import FormatError
from bitnet.models import lm_head_screen
from bitnet.models.config import ModelConfig
from bitnet.models.transformer import Transformer
from bitnet.runtime.pool import Pool
from bitnet.text import vocabulary

FOLDER = DATA / "hf_bitnet_offline"
GGUF = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
FIXTURES = {
    path.parent.name: path.parent / json.loads(path.read_text())["load"]
    for path in sorted(DATA.glob("*/meta.json"))
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITNET_NUM_THREADS", "1")


@pytest.fixture
def inspect(capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def call(*argv):
        code = main(["inspect", *map(str, argv)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def no_tokenizer(monkeypatch):
    def refuse(*_):
        raise AssertionError("a tokenizer was built")

    monkeypatch.setattr(vocabulary, "from_source", refuse)


def squeezed(text):
    return [" ".join(line.split()) for line in text.splitlines()]


# ------------------------------------------------------------------------------------- what it says
@pytest.mark.parametrize("path", FIXTURES.values(), ids=FIXTURES)
def test_every_form_of_model(inspect, path, no_tokenizer):
    code, out, err = inspect(path, "--json")
    found, config = json.loads(out), open_checkpoint(path).config
    assert (code, err) == (0, "") and found["family"] == config.family
    counts = {True: 0, False: 0}
    for shape in config.tensor_shapes().values():
        counts[False] += int(np.prod(shape))
    for tensor in found["tensors"]:
        counts[tensor["ternary"]] += tensor["weights"] * (1 if tensor["ternary"] else 0)
        assert tensor["offset"] + tensor["bytes"] <= os.path.getsize(tensor["file"])
    assert found["ternary_weights"] == counts[True] > 0
    assert found["ternary_weights"] + found["float_weights"] == counts[False]
    for file in found["files"]:
        parts = [file[part] for part in ("header_bytes", "tensor_bytes", "unused_bytes")]
        assert sum(parts) == file["bytes"] == os.path.getsize(file["path"])
    code, out, err = inspect(path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    table = lines[lines.index("") + 1 :]
    assert len(table) > 8 and table[0].startswith("tensor ")
    place = table[0].index("use")
    assert {line[place - 1] for line in table} == {" "}  # the columns are straight
    assert {line[place:] for line in table[1:]} <= {"in place", "repacked once", "copied", "scale"}


def test_a_table_for_people(inspect):
    lines = squeezed(inspect(GGUF)[1])
    for line in (
        "family bitnet (bitnet-b1.58): 3 layers, hidden 256, ffn 640, relu2",
        "attention 4 heads, 2 for keys and values, of 64; RoPE base 500,000",
        "vocabulary 384 rows, tied head; begins with 381, ends at 382, 383",
        "tokenizer gpt2, llama-bpe, 384 tokens, with a chat template",
        "weights 2,064,384 ternary, 2.003 bits each (I2_S)",
        "repacked file not needed: every ternary tensor is used in place",
        "blk.*.attn_q.weight 3 x I2_S 256 x 256 49,248 in place",
        "blk.*.attn_norm.weight 3 x F32 256 3,072 copied",
    ):
        assert line in lines, line
    every = squeezed(inspect(GGUF, "--tensors")[1])
    assert any(line.startswith("blk.1.attn_q.weight I2_S 256 x 256 16,416 ") for line in every)
    assert inspect()[0] == 0


def test_offsets_are_of_the_file(inspect):
    found = json.loads(inspect(GGUF, "--json")[1])
    (norm,) = [t for t in found["tensors"] if t["name"] == "output_norm.weight"]
    assert (norm["type"], norm["use"]) == ("F32", "copied")
    stored = np.fromfile(GGUF, np.float32, norm["weights"], offset=norm["offset"])
    with weights.open(GGUF) as files:
        assert np.array_equal(files.vector("norm"), stored)


def test_sliding_windows_pooling_and_shards(inspect):
    out = inspect(FIXTURES["hf_embedding_gemma3"])[1]
    assert "1 of the layers see the last 64 positions" in out
    assert "that of its last token" in out and "without a chat template" in out
    out = inspect(FIXTURES["hf_llama_bitlinear"])[1]
    assert out.count("-of-00002.safetensors: ") == 2 and "separate head" in out


def test_layouts(inspect):
    assert "64 x 16" not in inspect(GGUF)[1]
    found = json.loads(inspect(GGUF, "--layout", "4row", "--json")[1])
    kinds = {t["stored_as"] for t in found["tensors"] if t["ternary"]}
    assert kinds == {"I2_S_4ROW"} and found["derived"]["tensors"] == 21


def test_what_is_repacked(inspect, monkeypatch):
    found = json.loads(inspect(FOLDER, "--json")[1])
    repacked = found["derived"]
    assert (repacked["tensors"], repacked["place"], repacked["path"]) == (21, "sidecar", None)
    assert "made at the first load" in inspect(FOLDER)[1]
    with bitnet.load(FOLDER):
        now = json.loads(inspect(FOLDER, "--json")[1])["derived"]
    assert now["bytes"] == repacked["bytes"] < os.path.getsize(now["path"])
    assert os.path.getsize(now["path"]) - now["bytes"] < 8192  # its header, and padding
    assert "there already" in inspect(FOLDER)[1]
    monkeypatch.setenv("BITNET_CACHE", "off")
    memory = json.loads(inspect(FOLDER, "--json")[1])["memory"]
    weights = memory["needs"][0]
    assert weights["purpose"] == "weights"
    assert repacked["bytes"] - 32 * 21 == weights["nbytes"]  # a tensor in a file has a tail
    assert memory["mapped_bytes"] + weights["nbytes"] == found["memory"]["mapped_bytes"]


@pytest.mark.parametrize("place", ["of all", "file"])
def test_a_cache_folder_that_a_load_does_not_use(inspect, tmp_path, monkeypatch, place):
    cache = tmp_path / "shared"
    cache.mkdir() if place == "of all" else cache.write_text("")
    cache.chmod(0o777 if place == "of all" else 0o600)
    monkeypatch.setenv("BITNET_CACHE", str(cache))
    assert "made in memory at each load" in inspect(FOLDER)[1]
    found = json.loads(inspect(FOLDER, "--json")[1])
    assert found["derived"]["place"] == "memory"
    assert found["memory"]["needs"][0]["purpose"] == "weights"


@pytest.mark.parametrize("path", [GGUF, FOLDER], ids=["in place", "repacked"])
def test_the_screen_of_the_head_is_made_at_the_first_load_too(inspect, monkeypatch, path):
    without = json.loads(inspect(path, "--json")[1])["derived"]
    monkeypatch.setattr(lm_head_screen, "MIN_WEIGHTS", 1)
    said = inspect(path)[1]
    assert "the screen of the head, made at the first load" in said and "not needed" not in said
    before = json.loads(inspect(path, "--json")[1])["derived"]
    assert before["screen_bytes"] == before["bytes"] - without["bytes"] > 0
    assert before["tensors"] == without["tensors"] and before["path"] is None
    with weights.open(path) as opened:
        assert sum(part.nbytes for part in opened.screen) == before["screen_bytes"]
        (repacked,) = (p for p, *_ in opened.mappings() if p.parent.name == "cache")
    assert before["bytes"] < os.path.getsize(repacked) < before["bytes"] + 8192
    assert json.loads(inspect(path, "--json")[1])["derived"]["path"] == str(repacked)
    monkeypatch.setenv("BITNET_CACHE", "off")  # then it is not made
    assert json.loads(inspect(path, "--json")[1])["derived"]["screen_bytes"] == 0


def test_a_part_without_the_others_is_shown_as_far_as_it_goes(inspect, tmp_path, capsys):
    parts = small_models.split(small_models.gguf_model("llama"), 2)
    name, part = parts.popitem()
    (tmp_path / name).write_bytes(part.bytes())
    with pytest.raises(FormatError, match=r"model-00001-of-00002.gguf: missing"):
        open_checkpoint(tmp_path / name)
    assert main(["inspect", str(tmp_path / name)]) == 1
    out, err = capsys.readouterr()
    assert "cannot run" in out and part.tensors[0][0].replace(".0.", ".*.") in out
    assert "part 1 of 2, beside the others" in err


def test_a_changed_source_needs_a_new_repacked_file(inspect, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    with bitnet.load(folder):
        assert "there already" in inspect(folder)[1]
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert "made at the first load" in inspect(folder)[1]


# -------------------------------------------------------------------------------- what is refused
def gguf_file(tmp_path, *, arch="bitnet-b1.58", tensors=True):
    model = small_models.gguf_model()
    model.set("general.architecture", small_files.STRING, small_files.text(arch))
    if not tensors:
        model.tensors = []
    (tmp_path / "model.gguf").write_bytes(model.bytes())
    return tmp_path / "model.gguf"


def test_a_vocabulary_alone(inspect, tmp_path):
    path = gguf_file(tmp_path, arch="llama", tensors=False)
    code, out, err = inspect(path)
    lines = squeezed(out)
    assert code == 1 and "token_embd.weight: missing" in err and err.count("\n") == 1
    assert "tensors none: this is a vocabulary only" in lines
    assert "tokenizer gpt2, llama-bpe, 8 tokens, with a chat template" in lines
    code, out, _ = inspect(path, "--json", "--tensors")
    assert code == 1 and "missing" in json.loads(out)["refused"]


def test_another_architecture_is_shown_as_far_as_it_can_be_read(inspect, tmp_path):
    code, out, err = inspect(gguf_file(tmp_path, arch="gptj"))
    lines = squeezed(out)
    assert code == 1 and "general.architecture: gptj (" in err
    assert "architecture gptj" in lines
    assert any(line.startswith("blk.*.ffn_up.weight 1 x I2_S") for line in lines)


def test_a_folder_that_is_refused(inspect, tmp_path):
    small_models.write(tmp_path / "m", small_models.hf_files("llama", model_type="gptj"))
    code, out, err = inspect(tmp_path / "m")
    assert code == 1 and "model_type: gptj" in err and "lm_head.weight" in out


def test_what_cannot_be_read_at_all(inspect, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(GGUF.read_bytes()[:5000])
    for path in (tmp_path / "cut.gguf", tmp_path / "absent.gguf", tmp_path):
        code, out, err = inspect(path)
        assert (code, out) == (1, "") and err.count("\n") == 1


def test_a_context_beyond_the_models(inspect):
    code, out, err = inspect(GGUF, "--context", 513)
    assert (code, out) == (1, "") and "context: 513 (a whole number from 1 to 512)" in err


# ------------------------------------------------------------------------------------- its memory
def pool_of(transformer, pool, context, kv_dtype, slots):
    """Bytes by purpose with every slot full."""
    caches = [transformer.new_state(context, kv_dtype) for _ in range(slots)]
    for cache in caches:
        cache.reserve(context)
    found = {name: counts[0] for name, counts in pool.stats().by_purpose.items()}
    assert found["kv"] == slots * state_bytes(transformer.config, context, kv_dtype)
    for cache in caches:
        cache.close()
    return found


def foretold(config, **options):
    return {n.purpose: n.nbytes for n in plan(config, **options) if n.where == "pool"}


@pytest.mark.parametrize("path", FIXTURES.values(), ids=FIXTURES)
@pytest.mark.parametrize(("context", "kv_dtype", "slots"), [(300, "f16", 1), (129, "f32", 3)])
def test_the_plan_is_what_the_pool_holds(path, context, kv_dtype, slots):
    options = {"context": context, "kv_dtype": kv_dtype, "slots": slots}
    pool = Pool(1 << 28)
    with weights.open(path) as files:
        transformer = Transformer(files, pool, context=context, max_sequences=slots)
        found = pool_of(transformer, pool, **options)
        assert foretold(files.config, **options) == found


def shape_2b():
    fields = {
        "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 30,
        "num_attention_heads": 20, "num_key_value_heads": 5, "vocab_size": 128256,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "hidden_act": "relu2", "model_type": "bitnet", "tie_word_embeddings": True,
    }  # fmt: skip
    return ModelConfig.from_hf(fields, {}, "config.json", ())


class NoWeights:
    """weights.Weights of a configuration, all zeros: pages that nobody touches take no memory."""

    def __init__(self, config, is_screened):
        self.config, self.shapes, self.screen = config, config.tensor_shapes(), None
        self.activation_bits = self.rotation = None
        self.path = ""
        if is_screened:
            shape = self.shapes["embed_tokens"]
            self.screen = np.zeros(shape, np.int8), np.zeros((shape[0], 3), np.float32)

    def rows(self, _):
        n_rows, n_cols = self.shapes["embed_tokens"]
        data = np.zeros((n_rows, 2 * n_cols), np.uint8)
        return SimpleNamespace(data=data, type="F16", n_cols=n_cols)

    def ternary(self, name):
        n_rows, n_cols = self.shapes[name]
        codes = np.zeros((n_rows, n_cols // 4), np.uint8)
        scales = np.ones((1, 1), "f4")
        return SimpleNamespace(codes=codes, scales=scales, n_cols=n_cols, path="", name=name)

    def vector(self, name):
        return np.ones(self.shapes[name], np.float32)

    def check_maps(self):
        pass


@pytest.mark.parametrize("is_screened", [False, True])
def test_the_plan_of_the_2b_shape(is_screened):
    config, options = shape_2b(), {"context": 4096, "kv_dtype": "f16", "slots": 2}
    pool = Pool(1 << 30)
    files = NoWeights(config, is_screened)
    transformer = Transformer(files, pool, context=4096, max_sequences=2)
    found = pool_of(transformer, pool, **options)
    assert foretold(config, is_screened=is_screened, **options) == found
    assert found["kv"] == 2 * 300 << 20


def test_inspect_shows_the_plan(inspect):
    memory = json.loads(inspect(GGUF, "--context", 200, "--kv-dtype", "f32", "--json")[1])["memory"]
    assert (memory["context"], memory["kv_dtype"], memory["threads"]) == (200, "f32", 1)
    needs = {n["purpose"]: n["nbytes"] for n in memory["needs"] if n["where"] != "files"}
    assert memory["private_bytes"] == sum(needs.values())
    with bitnet.load(GGUF, context=200, kv_dtype="f32") as model:
        model.generate([0] * 190, max_tokens=10, temperature=0)
        held = model.memory().pool.by_purpose
    for purpose, (in_use, _, _) in held.items():
        assert needs.pop(purpose) == in_use
    assert needs.keys() == {"tokenizer", "engine", "threads", "free"}
    lines = squeezed(inspect(GGUF, "--context", 200, "--kv-dtype", "f32")[1])
    assert "memory for 200 tokens of f32 keys and values, one sequence, threads: 1" in lines
    assert f"{held['kv'][0] / 1024:.1f} KiB kv keys and values: 1 x 2 pages of 128 positions" in (
        " ".join(lines)
    )
