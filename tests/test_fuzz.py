"""Fuzzing of the readers: whatever the bytes, a file opens or ends in FormatError, nothing else."""

import json

import small_files
from hypothesis import given, settings
from hypothesis import strategies as st
from test_malformed import GGUF_HEADER, GGUF_RAW, ST_HEADER, ST_RAW, opens

from bitnet.formats import FormatError


def mutations(size, header):
    """Bytes to set, mostly in the header, and a length to cut the file to."""
    at = st.one_of(st.integers(0, header - 1), st.integers(0, size - 1))
    value = st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 3, 127, 128, 255]))
    cut = st.one_of(st.just(size), st.integers(0, size))
    return st.tuples(st.lists(st.tuples(at, value), max_size=8), cut)


def mutated(raw, mutation):
    changes, cut = mutation
    raw = bytearray(raw)
    for at, value in changes:
        raw[at] = value
    return bytes(raw[:cut])


def opens_or_refuses(path):
    try:
        opens(path)
    except FormatError as error:
        assert str(error)


@settings(deadline=None, max_examples=300)
@given(mutation=mutations(len(GGUF_RAW), GGUF_HEADER))
def test_fuzz_gguf(tmp_path_factory, mutation):
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    path.write_bytes(mutated(GGUF_RAW, mutation))
    opens_or_refuses(path)


@settings(deadline=None, max_examples=300)
@given(mutation=mutations(len(ST_RAW), ST_HEADER))
def test_fuzz_safetensors(tmp_path_factory, mutation):
    folder = small_files.hf_folder(tmp_path_factory.mktemp("fuzz") / "model")
    (folder / "model.safetensors").write_bytes(mutated(ST_RAW, mutation))
    opens_or_refuses(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(
    where=st.sampled_from(["config", "quantization", "generation", "tokenizer", "index"]),
    field=st.sampled_from(
        [*small_files.HF_CONFIG, *small_files.HF_CONFIG["quantization_config"], "head_dim",
         "rope_parameters", "rope_scaling", "modules_to_not_convert", "use_rms_norm", "temperature",
         "top_k", "top_p", "do_sample", "added_tokens_decoder", "chat_template", "weight_map"]
    ),
    value=JSON,
)  # fmt: skip
def test_fuzz_json_fields(tmp_path_factory, where, field, value):
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    changes = {field: value} if where == "config" else {}
    if where == "quantization":
        changes = {
            "quantization_config": small_files.HF_CONFIG["quantization_config"] | {field: value}
        }
    small_files.hf_folder(
        folder, generation={field: value} if where == "generation" else {}, **changes
    )
    if where == "tokenizer":
        (folder / "tokenizer_config.json").write_text(json.dumps({field: value}))
    if where == "index":
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({field: value}))
    opens_or_refuses(folder)
