"""Odd but valid tokenizer.json files, and the pieces of a GGUF file."""

import json
from types import SimpleNamespace

import pytest
from support.vocabularies import (
    BOS,
    BYTES,
    CONFIG,
    END,
    FOLDER,
    ID,
    SPECIAL,
    UNUSED,
    USER_DEFINED,
    from_json,
)

from bitnet import ContextFull, FormatError
from bitnet.text.tokenizer import Tokenizer
from bitnet.text.vocabulary import TokenizerSource


def changed_json(folder, change, config=CONFIG, **tokenizer_config):
    """The tokenizer of tests/data/vocabulary after change(the object in its file)."""
    data = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    change(data)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    source = TokenizerSource(folder, path, tokenizer_config=tokenizer_config)
    return Tokenizer.from_source(source, config)


def added(data, text):
    return next(token for token in data["added_tokens"] if token["content"] == text)


def put_special_tokens_where_text_leads(data):
    model = data["model"]
    model["vocab"] |= {token["content"]: token["id"] for token in data["added_tokens"]}
    model["vocab"] |= {"[[": 600}
    model["merges"] += [["[", "["], ["[[", "]"]] + [["[[", "]]"]] * ("]]" in model["vocab"])
    model["vocab"]["[[]"] = 601
    model["merges"] += [["[[]", "]"]]


def test_special_tokens_that_text_would_spell(tmp_path):
    """They are words of the vocabulary, "[[]]" by merges too; all other ids stay as they are."""
    plain = from_json()
    found = changed_json(tmp_path, put_special_tokens_where_text_leads)
    texts = ["", "In the beginning", "  a,\tb\n", "[[]]<|eot_id|>2<|eot_id|><tool>é new", "日本 🦙"]
    for text in texts:
        for parse in (False, True):
            if "[" not in text or parse:
                assert found.encode(text, parse_special=parse) == plain.encode(
                    text, parse_special=parse
                )
    assert ID["[[]]"] not in found.encode("[[]] [[]]<|eot_id|>")
    assert found.decode(found.encode("[[]] <|eot_id|>")) == "[[]] <|eot_id|>"
    assert found.encode("[[]]", False, True) == [ID["[[]]"]]


def test_a_special_newline_is_a_newline(tmp_path):
    def change(data):
        added(data, "<tool>").update(content="\n", special=True)

    found = changed_json(tmp_path, change)
    assert found.encode("a\nb", False)[1] == ID["<tool>"]
    assert found.decode(found.encode("a\nb")) == "a\nb"


def test_a_turn_token_listed_as_an_ordinary_one(tmp_path):
    def change(data):
        added(data, "<tool>").update(content="<start_of_turn>")

    found = changed_json(tmp_path, change)
    assert ID["<tool>"] not in found.encode("a<start_of_turn>b")
    assert found.encode("<start_of_turn>", False, True) == [ID["<tool>"]]


def test_a_special_token_beyond_the_models_rows(tmp_path):
    def change(data):
        data["added_tokens"].append({**added(data, "[[]]"), "content": "<image>", "id": 596})

    found = changed_json(tmp_path, change)
    assert max(found.encode("a<image>b", parse_special=True)) < CONFIG.vocab_size
    assert found.decode(found.encode("a<image>b")) == "a<image>b"


def after(*names):
    ids = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    return {"single": [*ids[:1], {"Sequence": {"id": "A", "type_id": 0}}, *ids[1:]]}


def test_tokens_behind_a_text(tmp_path):
    def change(data):
        made = data["post_processor"]
        end, begin = "<|end_of_text|>", "<|begin_of_text|>"
        made["special_tokens"][end] = {"id": end, "ids": [END], "tokens": [end]}
        made.update(after(begin, end))

    found = changed_json(tmp_path, change)
    ids = found.encode("x", add_eos=True)
    assert ids == [BOS, *from_json().encode("x", False), END]
    assert found.encode("x") == ids[:-1]
    assert found.encode("x", add_bos=False, add_eos=True) == ids[1:]


def test_tokenizer_config_asks_for_tokens_where_the_post_processor_adds_none(tmp_path):
    def change(data):
        data["post_processor"] = None

    asks = changed_json(tmp_path, change, add_bos_token=True, add_eos_token=True)
    assert asks.encode("", add_eos=True) == [BOS, END]
    assert changed_json(tmp_path, change).encode("", add_eos=True) == []
    assert from_json(add_bos_token=False).encode("") == [BOS]


def metaspace(scheme):
    def change(data):
        data.update(post_processor=None, added_tokens=data["added_tokens"][:3])
        data["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "split": False,
            "prepend_scheme": scheme,
        }
        data["decoder"] = data["pre_tokenizer"]
        data["model"] |= {
            "vocab": {t: i for i, t in enumerate(["▁", "a", "▁a", "<unk>"])},
            "merges": [["▁", "a"]],
            "unk_token": "<unk>",
        }
        for i, token in enumerate(data["added_tokens"]):
            token["id"] = 4 + i

    return change


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("first", [2, 5, 1, 2]),
        ("always", [2, 5, 2, 2]),
        ("never", [1, 5, 1, 2]),
    ],
)
def test_metaspace(scheme, expected, tmp_path):
    config = SimpleNamespace(vocab_size=7, bos_token_id=4, eos_token_ids=(5,))
    found = changed_json(tmp_path, metaspace(scheme), config)
    assert found.encode("a<|end_of_text|>a a", False, parse_special=True) == expected
    assert found.decode([2, 2]) == (" a a" if scheme == "never" else "a a")
    assert found.decode([2, 2]).strip() == "a a"


# GGUF metadata of SentencePiece's kind ------------------------------------------------------------


def pieces_metadata(**changes):
    rows = [
        *SPECIAL,
        *BYTES,
        ("▁", -1.0, 1),
        ("a", -1.0, 1),
        ("▁a", -2.0, 1),
        ("aa", -3.0, 1),
        ("<t>", 0.0, USER_DEFINED),
        ("  ", 0.0, USER_DEFINED),
        ("[PAD265]", -9.0, UNUSED),
    ]
    texts, scores, kinds = map(list, zip(*rows, strict=True))
    keys = {
        "model": "llama",
        "tokens": texts,
        "scores": scores,
        "token_type": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | changes
    keys = {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}
    config = SimpleNamespace(vocab_size=300, bos_token_id=1, eos_token_ids=(2,))
    return Tokenizer.from_source(TokenizerSource(FOLDER, metadata=keys), config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", [261]),
        ("aa a", [261, 260, 261]),
        ("a<t>a", [261, 263, 261]),
        ("a   a", [261, 264, 259, 261]),
        ("</s>", [259, 63, 50, 118, 65]),
        ("[PAD265]", [259, 94, 83, 68, 71, 53, 57, 56, 96]),
    ],
)
def test_pieces_as_llama_cpp_finds_them(text, expected):
    tokenizer = pieces_metadata()
    assert tokenizer.encode(text) == [1, *expected]
    if "<t>" not in text and "   " not in text:
        assert tokenizer.decode(expected) == text
    assert pieces_metadata(add_bos_token=False).encode(text) == expected


def test_pieces_without_a_space_in_front():
    tokenizer = pieces_metadata(add_space_prefix=False)
    assert tokenizer.encode("aa  a<t> a", False) == [262, 264, 260, 263, 261]
    assert tokenizer.decode([261, 262]) == " aaa"
    assert tokenizer.decode([265]) == ""


def test_more_end_tokens_of_a_file():
    assert pieces_metadata(eot_token_id=263, eom_token_id=264).eos_ids == (2, 263, 264)
    ids = pieces_metadata(add_eos_token=True).encode("a", add_eos=True)
    assert ids == [1, 261, 2]


def test_a_long_text_of_pieces_is_refused_before_it_is_encoded():
    with pytest.raises(ContextFull):
        pieces_metadata().encode("a " * 5_000_000, limit=4096)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scores": None}, "scores: missing"),
        ({"scores": [0.0] * 9}, "scores: 9 values"),
        ({"token_type": None}, "token_type: missing"),
        ({"scores": [float("nan")] * 266}, r"scores\[0\]: nan"),
        ({"token_type": [1] * 265 + [6]}, r"tokens\[265\]: \[PAD265\]"),
        ({"token_type": [3] * 266}, "<0x00>"),
        ({"add_space_prefix": 1}, "add_space_prefix: int"),
        ({"add_bos_token": "no"}, "add_bos_token: str"),
        ({"merges": ["a b c"]}, "merges"),
        ({"merges": ["a nowhere"]}, "merges"),
    ],
)
def test_damaged_pieces(changes, field):
    with pytest.raises(FormatError, match=field):
        pieces_metadata(**changes)
