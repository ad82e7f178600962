"""Tokenizers carried to another container: the same ids for every text, both ways."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import tokenizer_files
from bitnet.chat import BITNET_2B_4T
from bitnet.formats import FormatError, gguf
from bitnet.source import TokenizerSource, scan
from bitnet.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"
MODELS = sorted(path.parent.name for path in DATA.glob("*/tokenizer_cases.json"))


def source_of(name):
    meta = json.loads((DATA / name / "meta.json").read_text())
    return scan(DATA / name / meta["load"])


def through_gguf(source, config, folder):
    """The tokenizer after a trip through the metadata of a file."""
    keys = tokenizer_files.to_gguf(source, config)
    gguf.write(folder / "t.gguf", keys, [])
    metadata = gguf.GGUFFile(folder / "t.gguf").metadata
    return TokenizerSource(folder / "t.gguf", metadata=dict(metadata))


def through_folder(source, config, folder):
    for name, data in tokenizer_files.to_hf(source, config).items():
        (folder / name).write_bytes(data)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    return TokenizerSource(folder, folder / "tokenizer.json", tokenizer_config=settings)


TRIPS = {"gguf": [through_gguf], "hf": [through_folder], "both": [through_gguf, through_folder]}


def carried(name, trip, folder):
    model = source_of(name)
    source = model.tokenizer_source
    for i, step in enumerate(TRIPS[trip]):
        (folder / str(i)).mkdir()
        source = step(source, model.config, folder / str(i))
    return [Tokenizer.from_source(s, model.config) for s in (model.tokenizer_source, source)]


@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("name", MODELS)
def test_the_stored_cases(name, trip, tmp_path):
    _, tokenizer = carried(name, trip, tmp_path)
    for case in json.loads((DATA / name / "tokenizer_cases.json").read_text()):
        text = case["text"]
        assert tokenizer.encode(text, add_bos=False, parse_special=True) == case["plain"]
        assert tokenizer.encode(text, parse_special=True, add_eos=True) == case["full"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    names = ["hf_llama_bitlinear", "gguf_i2_s_llama", "hf_bitnet_b158_large", "hf_embedding_qwen3"]
    return [
        carried(name, trip, tmp_path_factory.mktemp("trip")) for name in names for trip in TRIPS
    ]


TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="ab \n\t.'s12 tthe", max_size=60),
    st.sampled_from(
        ["👩‍👩‍👧 日本語", "<|eot_id|>x<s>", "  two  spaces ", "\u2581x", "<0x41>", "é" * 9]
    ),
)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, parse=st.booleans())
def test_any_text_has_the_same_ids_and_comes_back(pairs, text, parse):
    for before, after in pairs:
        ids = before.encode(text, parse_special=parse, add_eos=True)
        assert after.encode(text, parse_special=parse, add_eos=True) == ids
        assert after.decode(ids) == before.decode(ids)


@pytest.mark.parametrize("name", MODELS)
def test_end_tokens_and_templates(name, tmp_path):
    before, after = carried(name, "both", tmp_path)
    assert set(after.eos_ids) == set(before.eos_ids) and after.bos_id == before.bos_id
    templates = [t.chat_template and t.chat_template.source for t in (before, after)]
    assert templates[0] == templates[1]


def test_the_wrong_template_of_the_official_file_is_not_carried_on():
    model = source_of("gguf_i2_s_bitnet158")
    assert "BITNETAssistant" in model.tokenizer_source.metadata["tokenizer.chat_template"]
    keys = tokenizer_files.to_gguf(model.tokenizer_source, model.config)
    assert keys["tokenizer.chat_template"] == BITNET_2B_4T
    tokens = list(keys["tokenizer.ggml.tokens"])
    assert keys["tokenizer.ggml.eot_token_id"] == tokens.index("<|eot_id|>")
    assert keys["tokenizer.ggml.pre"] == "llama-bpe"


def test_unused_ids_are_padded():
    model = source_of("hf_bitnet_online")  # its vocabulary has more rows than tokens
    keys = tokenizer_files.to_gguf(model.tokenizer_source, model.config)
    assert len(keys["tokenizer.ggml.tokens"]) == model.config.vocab_size == 384
    assert keys["tokenizer.ggml.tokens"][-1] == "[PAD383]"
    assert keys["tokenizer.ggml.token_type"][-1] == 5


def split_of(data):
    return data["pre_tokenizer"]["pretokenizers"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda t: split_of(t)[0]["pattern"].update(Regex=r"\\w+"), "pre_tokenizer: .*w"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer: Lowercase"),
        (lambda t: split_of(t)[1].update(add_prefix_space=True), "add_prefix_space"),
    ],
)  # fmt: skip
def test_what_a_gguf_cannot_say_is_refused(change, field, tmp_path):
    model = source_of("hf_embedding_qwen3")
    data = json.loads(model.tokenizer_source.tokenizer_json.read_text())
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    source = TokenizerSource(tmp_path, tmp_path / "tokenizer.json")
    with pytest.raises(FormatError, match=field):
        tokenizer_files.to_gguf(source, model.config)


def test_a_model_without_a_tokenizer_keeps_its_end_tokens():
    config = source_of("hf_llama_bitlinear").config
    keys = tokenizer_files.to_gguf(TokenizerSource(Path()), config)
    assert keys == {
        "tokenizer.ggml.bos_token_id": 397,
        "tokenizer.ggml.eos_token_id": 398,
        "tokenizer.ggml.eot_token_id": 399,
    }
    assert tokenizer_files.to_hf(TokenizerSource(Path()), config) == {}
