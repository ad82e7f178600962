"""load(speculative=MODEL): what may draft for what, whose memory it is, and that it is asked."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from support import group_models
from support.paths import DATA, TINY_MODEL

import bitnet
from bitnet.api.load import BUNDLED_MODEL
from bitnet.checkpoints import convert
from bitnet.checkpoints.memory_plan import Planner, Settings, settings_of_draft
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.cli import main
from bitnet.formats import gguf
from bitnet.generation import draft_model
from bitnet.generation.draft_policy import Losses, Savings

MIB = 1 << 20


@pytest.fixture
def eager(monkeypatch):
    """Drafts at any time."""
    rng = random.Random(0)
    monkeypatch.setattr(
        draft_model,
        "best_lengths",
        lambda target, draft, candidates, n, rows: [rng.randint(0, rows // n) for _ in candidates],
    )
    monkeypatch.setattr(draft_model, "MIN_PLAIN", 0)
    monkeypatch.setattr(Losses, "left", lambda self, plain: 9.0)
    lasting = property(lambda self: 9.0, lambda self, value: None)
    monkeypatch.setattr(Savings, "seconds", lasting, raising=False)


@pytest.fixture(scope="module")
def renamed(tmp_path_factory):
    """The bundled model with another spelling of token 77, and with another type of token 5."""
    folder, file = tmp_path_factory.mktemp("renamed"), gguf.GGUFFile(BUNDLED_MODEL)

    def written(name, change):
        metadata = dict(file.metadata)
        change(metadata)
        tensors = [(t.name, t.shape, t.type, t.data) for t in file.tensors.values()]
        gguf.write(folder / name, metadata, tensors)
        return folder / name

    def spell(metadata):
        tokens = list(metadata["tokenizer.ggml.tokens"])
        tokens[77] = "other"
        metadata["tokenizer.ggml.tokens"] = tokens

    def retype(metadata):
        types = np.array(metadata["tokenizer.ggml.token_type"])
        types[5] = 5  # unused
        metadata["tokenizer.ggml.token_type"] = types

    return written("spelled.gguf", spell), written("retyped.gguf", retype)


def endless(model):
    """Options with which no end token comes."""
    ends = {*model.tokenizer.eos_ids, *model.config.eos_token_ids}
    return {"temperature": 0.0, "logit_bias": dict.fromkeys(ends, -float("inf"))}


def refused(model, draft):
    with pytest.raises(ValueError, match=r"^speculative: ") as caught:
        bitnet.load(model, speculative=draft, threads=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_vocabulary_that_differs_is_refused_by_name(renamed):
    spelled, retyped = renamed
    message = refused(None, spelled)
    assert "spelled.gguf has other tokens: 1 of" in message
    assert "as 77, 'other' (model.gguf: " in message
    assert "as 5, None (model.gguf: " in refused(None, retyped)
    other = DATA / "gguf_i2_s_llama" / "model.gguf"
    n, n_bundled = (open_checkpoint(p).config.vocab_size for p in (other, BUNDLED_MODEL))
    assert refused(None, other) == (
        f"speculative: model.gguf has {n} tokens (model.gguf: {n_bundled})"
    )


def test_vocabularies_are_compared_across_containers(eager, tmp_path):
    """One model's tokens are the same in a folder and in a GGUF."""
    folder, path = DATA / "hf_bitnet_offline", tmp_path / "converted.gguf"
    convert.convert(folder, path)
    for pair in ((folder, path), (path, folder), (folder, folder)):
        with bitnet.load(pair[0], speculative=pair[1], threads=1) as model:
            assert model.generate("a b", max_tokens=20, temperature=0).drafted_tokens
            assert "draft: " in str([need.what for need in model.needs])


def test_what_cannot_draft_is_refused(tmp_path):
    embedding = DATA / "gguf_i2_s_embedding_qwen3" / "model.gguf"
    assert refused(None, embedding).endswith("model.gguf is an embedding model")
    assert refused(embedding, BUNDLED_MODEL).endswith("model.gguf is an embedding model")
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(group_models.gguf(group_models.base()).bytes())
    assert refused(bare, bare) == "speculative: bare.gguf has no tokenizer to compare its tokens by"
    with pytest.raises(FileNotFoundError):
        bitnet.load(speculative=tmp_path / "none.gguf")
    with bitnet.load(threads=1) as model:
        for method, message in (("draft", "load was given no model"), ("x.gguf", "ngram or draft")):
            with pytest.raises(ValueError, match=f"speculative: '{method}'.*{message}"):
                model.generate("a", speculative=method)
        for method in ("", False, 0):  # which are not None, what load was told
            with pytest.raises(ValueError, match=f"^speculative: {method!r} "):
                model.generate("a", speculative=method)


@pytest.mark.parametrize("value", ["", "off", "draft", False, 3, b"model.gguf"])
def test_what_names_no_model_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"^speculative: .*\(a model, 'ngram' or None\)$"):
        bitnet.load(threads=1, speculative=value)


def test_a_generation_may_say_otherwise(eager):
    options = {"max_tokens": 30, "temperature": 0.8, "seed": 1}
    with bitnet.load(TINY_MODEL, threads=1, speculative="ngram") as plain:
        prompt = "And the king said. And the king said. And the king"
        expected = plain.generate(prompt, **options)
        assert expected.drafted_tokens
        with bitnet.load(TINY_MODEL, threads=1, speculative=plain) as model:
            methods = (None, "draft", "ngram", "off")
            done = {how: model.generate(prompt, speculative=how, **options) for how in methods}
    assert {c.text for c in done.values()} == {expected.text}
    assert done[None].drafted_tokens > 0 < done["draft"].drafted_tokens
    assert done["off"].drafted_tokens == 0
    assert done["ngram"].drafted_tokens == expected.drafted_tokens


# ------------------------------------------------------------------------------------------ memory
@pytest.mark.parametrize("settings", [
    Settings(512), Settings(200, "int8", 3), Settings(256, mapping="copy", slots=2),
], ids=str)  # fmt: skip
def test_it_is_in_the_pool_the_plan_and_the_report(eager, settings):
    checkpoints = [open_checkpoint(BUNDLED_MODEL) for _ in range(2)]
    planner, alone = Planner(*checkpoints), Planner(open_checkpoint(BUNDLED_MODEL))
    minimum = planner.minimum(settings)
    limits = vars(settings) | {"speculative": BUNDLED_MODEL, "prefix_cache": False}
    with pytest.raises(bitnet.MemoryLimitExceeded) as caught:
        bitnet.load(memory_limit=minimum - 1, **limits)
    assert ({"speculative": None}, alone.minimum(settings)) in caught.value.remedies
    with bitnet.load(memory_limit=minimum, **limits) as model:
        done = model.generate([0] * (settings.context - 20), max_tokens=12, **endless(model))
        assert done.drafted_tokens
    with bitnet.load(**limits | {"prefix_cache": True}) as model:
        prompts = [[i] * (settings.context - 30) for i in range(settings.slots)]
        model.generate(prompts, max_tokens=12, **endless(model))
        report = model.memory()
        planned = dict(report.planned)
        in_use = {name: counts[0] for name, counts in report.pool.by_purpose.items()}
        assert in_use == {name: planned[name] for name in in_use}
        assert len(report.files) == 2
        for need in planner.needs(settings):
            planned[need.purpose] -= need.nbytes
        assert not any(planned.values())


def test_the_command_plans_it(capsys):
    assert main(["memory", "--speculative", str(BUNDLED_MODEL), "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["memory", "--json", "--threads", "1"]) == 0
    alone = json.loads(capsys.readouterr().out)
    whats = [need["what"] for need in found["plan"]]
    assert sum(what.startswith("draft: ") for what in whats) == 6
    kv = next(need["nbytes"] for need in alone["plan"] if need["purpose"] == "kv")
    assert found["private_bytes"] > alone["private_bytes"] + kv


def test_a_prefix_folder_and_a_small_context(eager, tmp_path):
    """Files keep what the large model has read. The small one reads the text's end."""
    options = {"max_tokens": 40, "temperature": 0.7, "seed": 1}
    prompt = "And the king said unto the people, " * 25
    limits = {"threads": 1, "context": 400}
    with bitnet.load(**limits) as plain:
        expected = plain.generate(prompt, **options).text
    for _ in range(2):
        folder = {"prefix_folder": tmp_path / "prefixes"}
        with bitnet.load(speculative=BUNDLED_MODEL, **limits, **folder) as model:
            model.scheduler.draft_model.transformer.context = 64
            done = model.generate(prompt, **options)
            assert done.text == expected and done.accepted_tokens
    assert done.cached_tokens > 100


def test_the_small_model_s_settings():
    config = open_checkpoint(BUNDLED_MODEL).config
    given = Settings(1 << 20, "int8", 3, 2, "lock", "int8")
    longest = config.max_position_embeddings
    expected = replace(given, context=longest, activations=None)
    assert settings_of_draft(given, config, False) == expected
    assert settings_of_draft(given, config, True) == replace(given, context=longest)
