"""Tokenizers carried to another container: the same ids for every text, both ways."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import DATA
from support.vocabularies import (
    BYTES,
    CONFIG,
    CONTROL,
    FOLDER,
    ID,
    METADATA,
    NORMAL,
    SPECIAL,
    USER_DEFINED,
    field,
    sentencepiece_model,
)

from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import FormatError
from bitnet.formats import gguf
from bitnet.text import tokenizer_export
from bitnet.text.chat_template import BITNET_2B_4T
from bitnet.text.tokenizer import Tokenizer
from bitnet.text.vocabulary import TokenizerSource, byte_level

MODELS = sorted(path.parent.name for path in DATA.glob("*/tokenizer_cases.json"))
RUNS = ["▁" * n for n in range(2, 6)]  # of one score, as in Llama-2's
LLAMA_2 = [
    *SPECIAL, *BYTES, *((text, -1e9, NORMAL) for text in [*RUNS, "▁", *"abcdt"]),
    ("▁t", -1.0, NORMAL), ("ab", -2.0, NORMAL), ("▁ab", -3.0, NORMAL), ("aba", -4.0, NORMAL),
    ("<pad>", 0.0, CONTROL),
]  # fmt: skip
GEMMA = [
    *LLAMA_2, ("<start_of_turn>", 0.0, USER_DEFINED), ("\n\n", 0.0, USER_DEFINED),
    ("\n\n\n", 0.0, USER_DEFINED), ("▁▁▁▁▁▁", 0.0, USER_DEFINED),
]  # fmt: skip
PIECES = SimpleNamespace(
    vocab_size=300, bos_token_id=1, eos_token_ids=(2,), max_position_embeddings=9
)


def source_of(name):
    meta = json.loads((DATA / name / "meta.json").read_text())
    return open_checkpoint(DATA / name / meta["load"])


def of_json(folder, name="tokenizer.json", change=None, **tokenizer_config):
    """The TokenizerSource of a folder, with a changed copy of a tokenizer.json in it."""
    data = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    if change:
        change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return TokenizerSource(folder, folder / "tokenizer.json", tokenizer_config=tokenizer_config)


def of_model(folder, pieces, more=b"", settings=(), **flags):
    path = folder / "tokenizer.model"
    path.write_bytes(sentencepiece_model(pieces, **flags) + more)
    return TokenizerSource(folder, sentencepiece=path, tokenizer_config=dict(settings))


def through_gguf(source, config, folder):
    """The tokenizer after a trip through the metadata of a file."""
    keys = tokenizer_export.to_gguf(source, config)
    gguf.write(folder / "t.gguf", keys, [])
    metadata = gguf.GGUFFile(folder / "t.gguf").metadata
    return TokenizerSource(folder / "t.gguf", metadata=dict(metadata))


def through_folder(source, config, folder):
    files = tokenizer_export.to_hf(source, config)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    paths = [folder / name if name in files else None for name in FILES]
    return TokenizerSource(folder, *paths, tokenizer_config=settings)


FILES = ("tokenizer.json", "tokenizer.model")
TRIPS = {
    "gguf": [through_gguf],
    "hf": [through_folder],
    "both": [through_gguf, through_folder],
    "round": [through_gguf, through_folder, through_gguf],
}


def carried(source, config, trip, folder):
    """The tokenizers before and after."""
    first = source
    for i, step in enumerate(TRIPS[trip]):
        (folder / str(i)).mkdir()
        source = step(source, config, folder / str(i))
    return [Tokenizer.from_source(s, config) for s in (first, source)]


@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("name", MODELS)
def test_the_stored_cases(name, trip, tmp_path):
    model = source_of(name)
    _, tokenizer = carried(model.tokenizer_source, model.config, trip, tmp_path)
    for case in json.loads((DATA / name / "tokenizer_cases.json").read_text()):
        text = case["text"]
        assert tokenizer.encode(text, add_bos=False, parse_special=True) == case["plain"]
        assert tokenizer.encode(text, parse_special=True, add_eos=True) == case["full"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    names = ["hf_llama_bitlinear", "gguf_i2_s_llama", "hf_bitnet_b158_large", "hf_embedding_qwen3"]
    folder = tmp_path_factory.mktemp

    def nfc(data):
        data["normalizer"] = {"type": "NFC"}

    sources = [(m.tokenizer_source, m.config) for m in map(source_of, names)] + [
        (of_json(folder("json")), CONFIG),
        (of_json(folder("json"), change=nfc), CONFIG),
        (TokenizerSource(FOLDER, metadata=METADATA), CONFIG),
        (of_model(folder("llama2"), LLAMA_2), PIECES),
        (of_model(folder("gemma"), GEMMA, space=False), PIECES),
    ]
    return [carried(*source, trip, folder("trip")) for source in sources for trip in TRIPS]


TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="ab \n\t.'s12 tthe", max_size=60),
    st.lists(
        st.sampled_from(
            ["👩‍👩‍👧 日本語", "<|eot_id|>", "x<s>", "  two  spaces ", "<0x41>", "é" * 9, "e\u0301",
             "[[]]", "<tool>", "<pad>", "\n\n\n\n", " " * 13, "aba", "\ud7ff", "<start_of_turn>"]
        ), max_size=6,
    ).map("".join),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, parse=st.booleans())
def test_any_text_has_the_same_ids_and_comes_back(pairs, text, parse):
    for before, after in pairs:
        ids = before.encode(text, parse_special=parse, add_eos=True)
        assert after.encode(text, parse_special=parse, add_eos=True) == ids
        assert after.decode(ids) == before.decode(ids)


@pytest.mark.parametrize("name", MODELS)
def test_end_tokens_and_templates(name, tmp_path):
    model = source_of(name)
    before, after = carried(model.tokenizer_source, model.config, "both", tmp_path)
    assert set(after.eos_ids) == set(before.eos_ids) and after.bos_id == before.bos_id
    templates = [t.chat_template and t.chat_template.source for t in (before, after)]
    assert templates[0] == templates[1]


def test_the_files_of_a_folder_stay_as_they_are(tmp_path):
    for source in (of_json(tmp_path, bos_token="x"), of_model(tmp_path, LLAMA_2)):
        files = tokenizer_export.to_hf(source, CONFIG)
        path = source.tokenizer_json or source.sentencepiece
        assert files.pop(path.name) == path.read_bytes()
        assert json.loads(files.pop("tokenizer_config.json")) == source.tokenizer_config
        assert not files


# GGUF keys ----------------------------------------------------------------------------------------


def test_the_wrong_template_of_the_official_file_is_not_carried_on():
    model = source_of("gguf_i2_s_bitnet158")
    assert "BITNETAssistant" in model.tokenizer_source.metadata["tokenizer.chat_template"]
    keys = tokenizer_export.to_gguf(model.tokenizer_source, model.config)
    assert keys["tokenizer.chat_template"] == BITNET_2B_4T
    tokens = list(keys["tokenizer.ggml.tokens"])
    assert keys["tokenizer.ggml.eot_token_id"] == tokens.index("<|eot_id|>")
    assert keys["tokenizer.ggml.pre"] == "llama-bpe"
    files = tokenizer_export.to_hf(model.tokenizer_source, model.config)
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == BITNET_2B_4T


@pytest.mark.parametrize("trip", [[], [through_gguf]])
def test_unused_ids_are_padded(trip, tmp_path):
    model = source_of("hf_bitnet_online")  # its vocabulary has more rows than tokens
    source = model.tokenizer_source
    for step in trip:
        source = step(source, replace(model.config, vocab_size=370), tmp_path)
    keys = tokenizer_export.to_gguf(source, model.config)
    assert len(keys["tokenizer.ggml.tokens"]) == model.config.vocab_size == 384
    assert keys["tokenizer.ggml.tokens"][-1] == "[PAD383]"
    assert keys["tokenizer.ggml.token_type"][-1] == 5
    assert keys["tokenizer.ggml.token_type"].dtype == "int32"  # as llama.cpp wants it


def test_the_keys_of_a_llama_2_vocabulary(tmp_path):
    source = of_model(tmp_path, LLAMA_2, settings={"pad_token": "<pad>"})
    keys = tokenizer_export.to_gguf(source, PIECES)
    found = {key.removeprefix("tokenizer.ggml."): value for key, value in keys.items()}
    assert found["model"] == "llama" and found["add_space_prefix"] is True
    assert found["add_bos_token"] is True and found["add_eos_token"] is False
    n = len(LLAMA_2)
    ids = [found[f"{name}_token_id"] for name in ("unknown", "bos", "eos", "padding")]
    assert ids == [0, 1, 2, n - 1]
    assert found["scores"].dtype == "float32" and found["token_type"].dtype == "int32"
    assert found["token_type"][:4].tolist() == [2, 3, 3, 6]
    assert "merges" not in found and len(found["scores"]) == PIECES.vocab_size


def test_merges_that_scores_say_as_well_are_left_out(tmp_path, caplog):
    """Also for runs of spaces, which have one score."""
    once = through_gguf(of_model(tmp_path, LLAMA_2), PIECES, tmp_path)
    keys = tokenizer_export.to_gguf(through_folder(once, PIECES, tmp_path), PIECES)
    tokens = keys["tokenizer.ggml.tokens"]
    scores = [keys["tokenizer.ggml.scores"][tokens.index(text)] for text in RUNS]
    assert scores[0] < scores[1] == scores[2] == scores[3]  # two spaces last: so the leftmost grow
    assert "tokenizer.ggml.merges" not in keys and not caplog.records


def test_merges_that_scores_do_not_say_are_kept(caplog):
    model = source_of("hf_bitnet_b158_large")
    keys = tokenizer_export.to_gguf(model.tokenizer_source, model.config)
    assert len(keys["tokenizer.ggml.merges"]) == 35
    assert "other engines may differ" in caplog.text


def test_user_defined_pieces_are_written_with_spaces(tmp_path):
    keys = tokenizer_export.to_gguf(of_model(tmp_path, GEMMA, space=False), PIECES)
    i = keys["tokenizer.ggml.tokens"].index(" " * 6)
    assert keys["tokenizer.ggml.token_type"][i] == USER_DEFINED
    i = keys["tokenizer.ggml.tokens"].index("<start_of_turn>")
    assert keys["tokenizer.ggml.token_type"][i] == CONTROL


def test_every_end_token_has_a_key(tmp_path):
    stated = SimpleNamespace(
        **vars(CONFIG) | {"eos_token_ids": (ID["a"], ID["b"], ID["<|eot_id|>"])}
    )
    source = of_json(tmp_path)
    keys = tokenizer_export.to_gguf(source, stated)
    names = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    assert [keys[name] for name in names] == [ID["a"], ID["<|eot_id|>"], ID["b"]]
    back = Tokenizer.from_source(TokenizerSource(tmp_path, metadata=keys), CONFIG)
    assert {ID["a"], ID["b"], ID["<|eot_id|>"]} < {*back.eos_ids, ID["a"]}
    stated.eos_token_ids += (ID["c"],)
    with pytest.raises(FormatError, match="at most three"):
        tokenizer_export.to_gguf(source, stated)


@pytest.mark.parametrize("name", byte_level.PRE_TOKENIZERS)
def test_pre_tokenizers_are_known_again(name, tmp_path):
    words, ignore_merges, adds_bos = byte_level.PRE_TOKENIZERS[name]
    metadata = METADATA | {"tokenizer.ggml.pre": name}
    del metadata["tokenizer.ggml.add_bos_token"]
    once = through_folder(TokenizerSource(FOLDER, metadata=metadata), CONFIG, tmp_path)
    keys = tokenizer_export.to_gguf(once, CONFIG)
    same = byte_level.PRE_TOKENIZERS[keys["tokenizer.ggml.pre"]]
    assert same[:2] == (words, ignore_merges)
    assert keys["tokenizer.ggml.add_bos_token"] is adds_bos
    assert tokenizer_export.to_gguf(
        TokenizerSource(FOLDER, metadata=metadata), CONFIG
    )["tokenizer.ggml.pre"] == keys["tokenizer.ggml.pre"]  # fmt: skip


def test_falcons_own_way_to_write_its_pre_tokenizer(tmp_path):
    def change(data):
        data["model"]["ignore_merges"] = False
        data["pre_tokenizer"]["pretokenizers"] = [
            {"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True},
            {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated",
             "invert": False},
        ]  # fmt: skip

    source = of_json(tmp_path, change=change)
    assert tokenizer_export.to_gguf(source, CONFIG)["tokenizer.ggml.pre"] == "falcon"
    (tmp_path / "trip").mkdir()
    before, after = carried(source, CONFIG, "both", tmp_path / "trip")
    for text in ("it's $5, 1234567!?", "a... b", "  x\n\n y'll 12"):
        assert after.encode(text) == before.encode(text)


def test_a_token_for_pictures_is_left_out(tmp_path):
    def change(data):
        n = CONFIG.vocab_size
        data["added_tokens"].append({**data["added_tokens"][0], "content": "<image>", "id": n})

    keys = tokenizer_export.to_gguf(of_json(tmp_path, change=change), CONFIG)
    assert len(keys["tokenizer.ggml.tokens"]) == CONFIG.vocab_size
    assert "<image>" not in keys["tokenizer.ggml.tokens"]


# what a container cannot say ----------------------------------------------------------------------


def split_of(data):
    return data["pre_tokenizer"]["pretokenizers"]


def flag(name):
    def change(data):
        data["added_tokens"][-1][name] = True

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: split_of(t)[0]["pattern"].update(Regex=r"\w+"), r"pre_tokenizer: .* \\w"),
        (lambda t: split_of(t)[0].update(behavior="MergedWithNext"), "Split MergedWithNext"),
        (lambda t: split_of(t)[0].update(invert=True), "pre_tokenizer"),
        (lambda t: split_of(t).insert(0, {"type": "Whitespace"}), "ignore_merges and Whitespace"),
        (lambda t: split_of(t)[1].update(add_prefix_space=True), "add_prefix_space"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer: Lowercase"),
        (lambda t: t["model"].update(dropout=0.5), "model dropout"),
        (lambda t: t["model"].update(end_of_word_suffix="</w>"), "model end_of_word_suffix"),
        (flag("lstrip"), "added token 'é new': lstrip"),
        (flag("single_word"), "single_word"),
        (lambda t: t["model"]["vocab"].update(z_z=9999), "token id: 9999"),
        (
            lambda t: split_of(t)[0]["pattern"].update(Regex=byte_level.QWEN_2),
            "pre_tokenizer: ignore_merges and",
        ),
    ],
)  # fmt: skip
def test_what_a_gguf_cannot_say_is_refused(change, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        tokenizer_export.to_gguf(of_json(tmp_path, change=change), CONFIG)


def of_llama(folder, change):
    """A tokenizer.json of Llama-2's kind, changed."""
    once = through_gguf(of_model(folder, LLAMA_2), PIECES, folder)
    data = json.loads(tokenizer_export.to_hf(once, PIECES)["tokenizer.json"])
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return TokenizerSource(folder, folder / "tokenizer.json")


METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(byte_fallback=False), "byte_fallback"),
        (lambda t: t["decoder"]["decoders"].pop(), "decoder: .*drops a space"),
        (lambda t: t["normalizer"]["normalizers"].pop(0), "decoder: .*keeps a space"),
        (lambda t: t["normalizer"]["normalizers"].reverse(), "normalizer, pre_tokenizer"),
        (lambda t: t.update(pre_tokenizer={"type": "Digits", "individual_digits": True}), "Digits"),
        (
            lambda t: t.update(
                normalizer=None, pre_tokenizer=METASPACE | {"prepend_scheme": "first"}
            ),
            "normalizer, pre_tokenizer: .*first",
        ),
    ],
)  # fmt: skip
def test_pieces_that_a_gguf_cannot_say_are_refused(change, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        tokenizer_export.to_gguf(of_llama(tmp_path, change), PIECES)


def test_metaspace_that_puts_no_space_in_front(tmp_path):
    def change(data):
        data["decoder"]["decoders"].pop()
        data.update(normalizer=None, pre_tokenizer=METASPACE | {"prepend_scheme": "never"})

    source = of_llama(tmp_path, change)
    assert tokenizer_export.to_gguf(source, PIECES)["tokenizer.ggml.add_space_prefix"] is False


@pytest.mark.parametrize(
    ("pieces", "more", "settings", "flags", "message"),
    [
        (LLAMA_2, field(2, field(3, 1)), {}, {}, "model_type: unigram"),
        (LLAMA_2, b"", {}, {"removes": True}, "remove_extra_whitespaces"),
        (LLAMA_2[:3], b"", {}, {"bytes": False}, "byte_fallback"),
        (GEMMA, b"", {}, {}, "user-defined pieces: 3"),
        (LLAMA_2, b"", {"legacy": False}, {}, "legacy: False"),
    ],
)
def test_a_tokenizer_model_that_a_gguf_cannot_say(pieces, more, settings, flags, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        tokenizer_export.to_gguf(of_model(tmp_path, pieces, more, settings, **flags), PIECES)


def test_equal_scores_that_merges_cannot_say(tmp_path):
    scored = [*LLAMA_2, ("bc", -2.0, NORMAL)]
    once = through_gguf(of_model(tmp_path, scored), PIECES, tmp_path)
    with pytest.raises(FormatError, match=r"scores of 'ab' and 'bc': -2\.0"):
        tokenizer_export.to_hf(once, PIECES)


def test_a_damaged_gguf_is_not_carried_on():
    metadata = METADATA | {"tokenizer.ggml.merges": ["a nowhere"]}
    with pytest.raises(FormatError, match="merges"):
        tokenizer_export.to_gguf(TokenizerSource(FOLDER, metadata=metadata), CONFIG)


def test_a_model_without_a_tokenizer_keeps_its_end_tokens():
    config = source_of("hf_llama_bitlinear").config
    keys = tokenizer_export.to_gguf(TokenizerSource(Path()), config)
    assert keys == {
        "tokenizer.ggml.bos_token_id": 397,
        "tokenizer.ggml.eos_token_id": 398,
        "tokenizer.ggml.eot_token_id": 399,
    }
    assert tokenizer_export.to_hf(TokenizerSource(Path()), config) == {}
