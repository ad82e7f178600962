"""A family of its own is an Architecture and its place in the registry: no other room knows it."""

import dataclasses
import json

import numpy as np
import pytest
from support import small_models
from support.conversions import tensors_of
from support.recurrent_model import RunningHash

import bitnet
from bitnet.checkpoints.convert import convert
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.cli import inspect_facts
from bitnet.models import llama, registry
from bitnet.models.architecture import BLOCK_ARRAYS, BLOCK_NORMS, LINEARS, Architecture
from bitnet.models.sequence_state import attention_parts
from bitnet.models.workspace import MAX_BATCH
from bitnet.verify import verify

SHAPE = small_models.Shape(hidden=128, ffn=256, heads=2, kv_heads=1, head_dim=64)
SCALED = {"embedding_scale": 2.0}
OKAPI = Architecture(
    name="okapi",
    block=llama.Block,
    norms=BLOCK_NORMS,
    activations=("silu", "relu2"),
    model_types=("okapi_text",),
    hf_names={"mlp.up_proj": "mlp.wide_proj"},
    hf_class="OkapiForCausalLM",
    float_linears="masters",
    norms_are_offsets=True,
    from_hf=lambda fields: SCALED,
    to_hf=lambda config, values: values | {"stripes": config.num_hidden_layers},
    gguf_architectures=("okapi",),
    gguf_names={"mlp.up_proj": "ffn_wide"},
    interleaved_in_gguf=True,
    from_gguf=lambda fields: SCALED,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model of the family, once it is in the registry."""
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(registry.ARCHITECTURES, OKAPI.name, OKAPI)
    monkeypatch.setitem(registry.BY_MODEL_TYPE, OKAPI.model_types[0], OKAPI)
    monkeypatch.setitem(registry.BY_GGUF_ARCHITECTURE, OKAPI.gguf_architectures[0], OKAPI)
    tensors = small_models.hf_tensors("llama", SHAPE)
    tensors = {name.replace("up_proj", "wide_proj"): entry for name, entry in tensors.items()}
    files = small_models.hf_files(
        "llama", SHAPE, tensors=tensors, model_type="okapi_text", quantization_config=None
    )
    small_models.write(tmp_path / "okapi", files)
    return tmp_path / "okapi"


def test_a_family_needs_its_architecture_alone(folder, tmp_path):
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    assert config.arch is OKAPI and config.embedding_scale == 2 and config.norms_are_offsets
    assert {t.stored_as for t in checkpoint.ternary.values()} == {"F16 masters"}
    tensor = checkpoint.floats["norm"]
    stored = (tensor.data.view("<u2").astype("<u4") << 16).view("<f4")
    assert (checkpoint.vector("norm") == 1 + stored).all()
    with bitnet.load(folder, threads=1) as model, model.session() as session:
        assert np.isfinite(session.feed([1, 2, 3])).all()
    assert inspect_facts.describe(folder)["family"] == "okapi"


def test_its_models_are_converted_and_compared(folder, tmp_path):
    path = convert(folder, tmp_path / "okapi.gguf").path
    config = open_checkpoint(path).config
    assert config.family == config.architecture == "okapi"
    assert config.rope_interleaved and not config.norms_are_offsets
    back = convert(path, tmp_path / "back").path
    written = json.loads((back / "config.json").read_text())
    assert written["architectures"] == ["OkapiForCausalLM"] and written["stripes"] == 1
    assert written["model_type"] == "okapi_text"
    assert open_checkpoint(back).config.norms_are_offsets
    for one, other in ((path, folder), (back, folder), (back, path)):
        report = verify(one, other, threads=1)
        failed = [check.name for check in report.named("FAILED")]
        assert failed == [], report
    codes = {name: data for name, data in tensors_of(back).items() if name.endswith("_proj")}
    assert len(codes) == len(LINEARS)
    assert all(tensors_of(folder)[name] == data for name, data in codes.items())


class Spacious(llama.Block):
    """A block that works on an array of its own."""

    def __call__(self, s, batch):
        assert s.spare.array().shape == (MAX_BATCH, 128 + 64)
        s.spare.array()[:] = 0
        super().__call__(s, batch)


def test_a_block_has_the_arrays_of_its_architecture(folder, monkeypatch):
    arrays = BLOCK_ARRAYS | {"spare": ("q", "head")}
    family = dataclasses.replace(OKAPI, block=Spacious, block_arrays=arrays)
    monkeypatch.setitem(registry.ARCHITECTURES, OKAPI.name, family)
    monkeypatch.setitem(registry.BY_MODEL_TYPE, OKAPI.model_types[0], family)
    with bitnet.load(folder, threads=1) as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()


class Remembering(llama.Block):
    """A block that writes into a part of its own of every sequence's state."""

    def __call__(self, s, batch):
        super().__call__(s, batch)
        for state in batch.states:
            state.parts["hash"].write(self.layer)


def with_a_hash(*arguments, **keywords):
    return attention_parts(*arguments, **keywords) | {"hash": RunningHash()}


def test_a_layer_reaches_what_it_remembers(folder, monkeypatch):
    """A second part goes through the transformer: its block writes it, a step counts it."""
    ids = [1, 2, 3, 4, 5]
    with bitnet.load(folder, kv_dtype="f32") as model:
        expected = model.logits(ids)
    family = dataclasses.replace(OKAPI, block=Remembering, state_parts=with_a_hash)
    monkeypatch.setitem(registry.ARCHITECTURES, OKAPI.name, family)
    monkeypatch.setitem(registry.BY_MODEL_TYPE, OKAPI.model_types[0], family)
    with bitnet.load(folder, kv_dtype="f32") as model, model.session() as session:
        assert (session.feed(ids) == expected[-1]).all()
        part = session.fork()._state.parts["hash"]
        layers = RunningHash()
        layers.reserve(1)
        for layer in range(model.config.num_hidden_layers):
            layers.write(layer)
        assert part.length == len(ids) and part.hashes[0] == layers.hashes[1]
        with pytest.raises(ValueError, match="trim"):
            session.trim(2)
