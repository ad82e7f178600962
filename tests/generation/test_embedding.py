"""Embedding models through the public API: against transformers (stored), alone and in batches."""

import json

import numpy as np
import pytest
from support.paths import DATA

import bitnet
from bitnet.cli import main
from bitnet.runtime import cpu, dispatch

FIXTURES = ["hf_embedding_qwen3", "hf_embedding_gemma3", "gguf_i2_s_embedding_qwen3"]
TEXTS = ["A ternary weight has three values.", "short", "and something longer " * 12, "b"]


def path_of(name):
    return DATA / name / json.loads((DATA / name / "meta.json").read_text())["load"]


@pytest.fixture(params=FIXTURES)
def name(request):
    return request.param


def test_embeddings_agree_with_transformers(name):
    meta = json.loads((DATA / name / "meta.json").read_text())
    stored = np.load(DATA / name / "reference.npz", allow_pickle=False)
    with bitnet.load(path_of(name), kv_dtype="f32") as model:
        for j in range(int(stored["n"])):
            ours = model.embed_tokens([stored[f"ids_{j}"]])[0].astype(np.float64)
            theirs = stored[f"embedding_{j}"].astype(np.float64)
            error = np.sqrt(((ours - theirs) ** 2).sum() / (theirs**2).sum())
            assert error <= meta["tolerance"]["rel_rms"]


def test_a_text_has_one_embedding_whatever_it_is_embedded_with(name):
    first = None
    for isa, threads, slots in [(isa, 1, 1) for isa in cpu.supported()] + [("generic", 2, 3)]:
        dispatch.use(isa)
        with bitnet.load(path_of(name), threads=threads, slots=slots) as model:
            rows = model.embed(TEXTS)
            assert rows.shape == (4, model.config.hidden_size) and rows.dtype == np.float32
            assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
            assert model.embed(TEXTS[2]).tobytes() == rows[2].tobytes()
            in_use = model.memory().as_dict()
        first = rows if first is None else first
        assert rows.tobytes() == first.tobytes(), (isa, threads, slots)
        assert "kv" not in str(in_use.get("pool", {}).get("in_use", {}))
    dispatch.use()


def test_the_end_token_is_behind_every_text(name):
    with bitnet.load(path_of(name)) as model:
        ids = model.tokenizer.encode("short", add_eos=True)
        if name != "hf_embedding_gemma3":
            assert ids[-1] in model.tokenizer.eos_ids
        assert model.embed_tokens([ids])[0].tobytes() == model.embed("short").tobytes()


def test_prompts_of_the_author(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in path_of("hf_embedding_qwen3").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    notes = {"prompts": {"query": "Query: ", "document": ""}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(notes))
    with bitnet.load(folder) as model:
        assert model.prompts == notes["prompts"]
        row = model.embed("x", prompt_name="query")
        assert row.tobytes() == model.embed("Query: x").tobytes()
        assert row.tobytes() == model.embed("x", prompt="Query: ").tobytes()
        with pytest.raises(ValueError, match=r"prompt_name: 'other' \(the model has query, doc"):
            model.embed("x", prompt_name="other")


def test_long_texts_go_in_parts(name):
    with bitnet.load(path_of(name), kv_dtype="f32") as model:
        ids = [i % 300 for i in range(400)]  # more than one forward pass takes
        row = model.embed_tokens([ids])[0]
        assert row.tobytes() == model.embed_tokens([[1], ids, [2]])[1].tobytes()
        with pytest.raises(bitnet.ContextFull):
            model.embed_tokens([ids * 2])
        with pytest.raises(ValueError, match=r"texts\[1\]: no tokens"):
            model.embed_tokens([ids, []])


def test_embedding_models_embed_and_others_generate(name):
    with bitnet.load(path_of(name)) as model, pytest.raises(ValueError, match="an embedding model"):
        model.generate("x")
    with bitnet.load() as model, pytest.raises(ValueError, match="no embedding model"):
        model.embed("x")


def test_command(name, capsys, monkeypatch):
    with bitnet.load(path_of(name)) as model:
        wanted = model.embed(TEXTS[:2])
    assert main(["embed", str(path_of(name)), *TEXTS[:2]]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert np.array(rows, np.float32).tobytes() == wanted.tobytes()
    assert main(["embed", str(path_of(name)), "x", "--prompt-name", "nothing"]) == 1
    assert "--prompt-name: 'nothing'" in capsys.readouterr().err


def test_an_embedding_that_is_not_finite_is_an_error(name):
    with bitnet.load(path_of(name)) as model:
        layers = model.scheduler.transformer.layers
        last, layers[-1] = layers[-1], lambda s, batch: spoil(s.hidden)
        with pytest.raises(bitnet.NotFinite, match="embedding of a text of 3 tokens is not finite"):
            model.embed_tokens([[3, 4], [3, 4, 5]])
        layers[-1] = last
        assert np.isfinite(model.embed_tokens([[3, 4]])).all()
        del layers, last  # they hold the pool's memory


def spoil(hidden):
    hidden.array()[2:] = np.nan
