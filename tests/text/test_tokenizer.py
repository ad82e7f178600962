"""Text to ids and back, from tokenizer.json and from GGUF metadata, which must agree."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from support.paths import DATA
from support.vocabularies import BOS, CONFIG, END, EOT, FOLDER, ID, TOKENS, from_json, from_metadata

from bitnet import ContextFull, FormatError
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.formats.gguf import GGUFFile
from bitnet.text.tokenizer import Tokenizer
from bitnet.text.vocabulary import TokenizerSource

VOCABS = os.environ.get("BITNET_TEST_VOCABS")

TOKENIZER_OF = {"json": from_json(), "metadata": from_metadata()}
LIBRARY = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "In the beginning God created the heaven and the earth.",
    "  two spaces,\ttab\nnewline\n\n\n  indented\r\n",
    "it's we'LL CAN'T don't 's",
    "1234567 and 3.14, ١٢٣٤",
    "naïve café Ünïcödé",
    "日本語のテキスト",
    "Привет, мир",
    "🦙🚀👩‍👩‍👧‍👦 done",
    "\0 nul \x7f \u200b\ufeff",
    "Zebra quartz xyzzy 987",
    "\u0301 combining e\u0301",
    "[[]]<|eot_id|>2<|eot_id|><tool>é new",
    "a" * 300,
    " " * 300,
    "\U0010ffff",
]


@pytest.fixture(params=TOKENIZER_OF)
def tokenizer(request):
    return TOKENIZER_OF[request.param]


@pytest.mark.parametrize("text", TEXTS)
def test_both_forms_agree_and_decoding_inverts(text):
    ids = TOKENIZER_OF["json"].encode(text)
    assert TOKENIZER_OF["metadata"].encode(text) == ids
    assert ids[0] == BOS
    for tokenizer in TOKENIZER_OF.values():
        assert tokenizer.decode(ids) == text


@given(st.text())
def test_any_text_survives(text):
    ids = TOKENIZER_OF["json"].encode(text)
    assert TOKENIZER_OF["metadata"].encode(text) == ids
    assert TOKENIZER_OF["metadata"].decode(ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_special_tokens_parsed_as_the_library_does(text, tokenizer):
    assert tokenizer.encode(text, parse_special=True) == LIBRARY.encode(text).ids


@pytest.mark.parametrize(
    "folder",
    sorted(p.parent for p in DATA.glob("*/tokenizer_cases.json")),
    ids=lambda folder: folder.name,
)
def test_fixture_texts(folder):
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    model = open_checkpoint(folder / meta["load"])
    tokenizer = Tokenizer.from_source(model.tokenizer_source, model.config)
    for case in json.loads((folder / "tokenizer_cases.json").read_text(encoding="utf-8")):
        plain = tokenizer.encode(case["text"], add_bos=False, parse_special=True)
        assert plain == case["plain"]
        if tokenizer.bos_id not in plain:
            full = tokenizer.encode(case["text"], parse_special=True, add_eos=True)
            assert full == case["full"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("1234567", ["123", "456", "7"]),
        ("98765", ["987", "65"]),
        ("x  y", ["x", " ", " y"]),
        ("they're", ["they", "'re"]),
        ("a\n\n b", ["a", "\n\n", " b"]),
        ("go!?\n", ["go", "!?\n"]),
        ("Zebra", ["Zebra"]),
        ("xyzzy's", ["xyzzy", "'s"]),
        (" quartz", [" quartz"]),
    ],
)
def test_words_of_llama_3(text, pieces, tokenizer):
    ids = tokenizer.encode(text, add_bos=False)
    assert ids == [i for piece in pieces for i in tokenizer.encode(piece, add_bos=False)]
    assert all(ends in _borders(tokenizer, ids) for ends in _ends(pieces))


def _ends(pieces):
    return [len("".join(pieces[: n + 1])) for n in range(len(pieces))]


def _borders(tokenizer, ids):
    return {len(tokenizer.decode(ids[: n + 1])) for n in range(len(ids))}


def test_whole_words_are_taken_only_with_ignore_merges():
    assert from_metadata().encode("xyzzy", add_bos=False) == [ID["xyzzy"]]
    assert len(from_metadata(pre="qwen2").encode("xyzzy", add_bos=False)) > 1


def test_digits_of_qwen2_come_one_by_one():
    assert len(from_metadata(pre="qwen2").encode("1865", add_bos=False)) == 4
    assert len(from_metadata(pre="gpt-2").encode("1865", add_bos=False)) == 3


@pytest.mark.parametrize("text", ["<|eot_id|>", "a<|begin_of_text|>b", "[[]]", "<|eot_id|>2"])
def test_special_tokens_in_text_are_text(text, tokenizer):
    ids = tokenizer.encode(text, add_bos=False)
    assert not {BOS, END, EOT, ID["[[]]"], ID["<|eot_id|>2"]} & set(ids)
    assert tokenizer.decode(ids) == text


def test_special_tokens_when_asked_for(tokenizer):
    assert tokenizer.encode("<|eot_id|>", False, parse_special=True) == [EOT]
    assert tokenizer.encode("[[]]<|eot_id|>2", False, True) == [ID["[[]]"], ID["<|eot_id|>2"]]


def test_user_defined_tokens_are_always_themselves(tokenizer):
    ids = tokenizer.encode("x<tool>é new", add_bos=False)
    assert ids[1:] == [ID["<tool>"], ID["é new"]]
    assert tokenizer.decode(ids) == "x<tool>é new"


def test_bos_comes_once(tokenizer):
    assert tokenizer.encode("<|begin_of_text|>x", parse_special=True).count(BOS) == 1
    assert tokenizer.encode("x", add_bos=False) == tokenizer.encode("x")[1:]
    assert tokenizer.bos_id == BOS


def test_bos_only_where_the_model_wants_it():
    assert BOS not in from_metadata(add_bos_token=False).encode("x")
    assert from_metadata(add_bos_token=None).encode("x")[0] == BOS  # llama-bpe's default
    assert BOS not in from_metadata(add_bos_token=None, pre="gpt-2").encode("x")
    no_bos = SimpleNamespace(vocab_size=600, bos_token_id=None, eos_token_ids=())
    assert BOS not in from_metadata(no_bos).encode("x")


def test_end_tokens_the_configuration_leaves_out(tokenizer):
    assert set(tokenizer.eos_ids) == {END, EOT}
    assert tokenizer.eos_ids[0] == END


def test_border_tokens_are_special_whatever_the_file_calls_them():
    config = SimpleNamespace(vocab_size=600, bos_token_id=BOS, eos_token_ids=(ID["<tool>"],))
    kinds = [1] * len(TOKENS)
    for tokenizer in (from_json(config), from_metadata(config, token_type=kinds)):
        ids = tokenizer.encode("x<tool>y<|begin_of_text|>", add_bos=False)
        assert not {BOS, ID["<tool>"]} & set(ids)
        assert tokenizer.encode("<tool>", False, parse_special=True) == [ID["<tool>"]]
        assert ID["<tool>"] in tokenizer.eos_ids


def test_decoding_leaves_special_and_unknown_tokens_out(tokenizer):
    ids = tokenizer.encode("x y")
    assert tokenizer.decode([*ids, EOT, len(TOKENS), 10**6]) == "x y"
    with pytest.raises(ValueError, match="-1"):
        tokenizer.decode([-1])


@given(st.text(), st.integers(0, 3))
def test_streaming_equals_decoding_and_cuts_no_character(text, skip):
    tokenizer = TOKENIZER_OF["metadata"]
    ids = tokenizer.encode(text, add_bos=False)[skip:]
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
    if not skip and "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)
        assert text.startswith("".join(pieces))


@given(st.lists(st.integers(0, len(TOKENS) - 1), max_size=30))
def test_any_ids_decode_as_in_the_library(ids):
    expected = LIBRARY.decode(ids, skip_special_tokens=True)
    assert TOKENIZER_OF["json"].decode(ids) == TOKENIZER_OF["metadata"].decode(ids) == expected


def test_an_emoji_comes_whole(tokenizer):
    ids = tokenizer.encode(" 🦙!", add_bos=False)
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert len(ids) > 3
    assert [piece for piece in pieces if piece] == [" ", "🦙", "!"]


def test_a_character_that_never_ends(tokenizer):
    stream = tokenizer.stream()
    ids = tokenizer.encode("é🦙", add_bos=False)
    assert "".join(map(stream.push, ids[:-1])) == "é"
    assert stream.finish() == "\ufffd"


def test_no_leading_space_is_lost(tokenizer):
    stream = tokenizer.stream()
    assert stream.push(tokenizer.encode(" the", add_bos=False)[0]) == " the"


@pytest.mark.parametrize("text", ["a\ud83d", "\udc00", "\ud83d\ude00"])
def test_half_a_surrogate_pair_is_refused(text, tokenizer):
    with pytest.raises(ValueError, match=r"text: U\+D[8C]\w\w at character \d .*surrogate"):
        tokenizer.encode(text)


def test_not_text(tokenizer):
    with pytest.raises(TypeError, match="bytes"):
        tokenizer.encode(b"x")


def test_a_text_far_too_long_is_refused_before_it_is_encoded(tokenizer):
    text = "In the beginning " * 600_000  # 10 MB
    with pytest.raises(ContextFull) as error:
        tokenizer.encode(text, limit=4096)
    assert error.value.requested > 4096
    ids = tokenizer.encode(text[:170_000])
    assert tokenizer.encode(text[:170_000], limit=len(ids)) == ids
    with pytest.raises(ContextFull) as error:
        tokenizer.encode(text[:170_000], limit=len(ids) - 1)
    assert error.value.requested == len(ids)


def test_of_a_long_text_its_beginning_tells_that_it_is_too_long(tokenizer, monkeypatch):
    encode, lengths = tokenizer._vocabulary.encode, []

    def counted(text, begins):
        lengths.append(len(text))
        return encode(text, begins)

    monkeypatch.setattr(tokenizer._vocabulary, "encode", counted)
    monkeypatch.setattr(tokenizer._vocabulary, "max_token_length", float("inf"))
    with pytest.raises(ContextFull):
        tokenizer.encode("+-" * 1_000_000, limit=1000)
    assert sum(lengths) < 6000
    lengths.clear()
    with pytest.raises(ContextFull):  # what compresses well first: twice the text at most, in all
        tokenizer.encode("In the beginning " * 10_000 + "+-" * 100_000, limit=100_000)
    assert sum(lengths) < 2 * 370_000


def test_a_long_message_is_refused_before_the_template(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer.chat_template, "pieces", None)
    with pytest.raises(ContextFull):
        model.tokenizer.chat([{"role": "user", "content": "x" * 1_000_000}], limit=1000)


def test_a_long_text(tokenizer):
    assert tokenizer.decode(tokenizer.encode("\n \t" * 100_000)) == "\n \t" * 100_000


# a vocabulary in the manner of SentencePiece: spaces as U+2581, unknown characters as bytes -------


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "▁ab",
        "<0xZZ>",
        "<0x-1>",
    ]
    model = tokenizers.models.BPE(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=[("▁", "a"), ("▁a", "b")],
        byte_fallback=True,
    )
    made = tokenizers.Tokenizer(model)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    path = tmp_path_factory.mktemp("spm") / "tokenizer.json"
    made.save(str(path))
    config = SimpleNamespace(vocab_size=600, bos_token_id=1, eos_token_ids=(2,))
    source = TokenizerSource(path.parent, path, tokenizer_config={"add_bos_token": True})
    return Tokenizer.from_source(source, config), made


@pytest.mark.parametrize("text", ["ab a", " ab", "  a", "é", "a🦙b", "b\na", "</s>"])
def test_byte_tokens(text, sentencepiece):
    tokenizer, library = sentencepiece
    ids = tokenizer.encode(text, add_bos=False)
    assert tokenizer.decode(ids) == text == library.decode(ids)
    assert tokenizer.encode(text) == [1, *ids]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) == text


def test_tokens_that_look_like_bytes(sentencepiece):
    tokenizer, _ = sentencepiece
    vocab = sentencepiece[1].get_vocab()
    assert tokenizer.decode([vocab["<0xZZ>"], vocab["<0x-1>"]]) == "<0xZZ><0x-1>"


def test_a_stream_that_goes_on_from_a_text_keeps_its_space(sentencepiece):
    tokenizer, _ = sentencepiece
    ids = tokenizer.encode("a a", add_bos=False)
    assert tokenizer.stream().push(ids[1]) == "a"
    assert tokenizer.stream(continues=True).push(ids[1]) == " a"


# damaged and unsupported ones ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model"),
        ({"pre": "deepseek-llm"}, "tokenizer.ggml.pre"),
        ({"merges": None}, "tokenizer.ggml.merges"),
        ({"tokens": []}, "tokenizer.ggml.tokens"),
        ({"merges": ["a b", "ab"]}, r"tokenizer.ggml.merges\[1\]"),
        ({"merges": ["a b c"]}, r"tokenizer.ggml.merges\[0\]"),
        ({"merges": ["a nowhere"]}, "tokenizer.ggml.merges"),
    ],
)
def test_damaged_metadata(changes, field):
    with pytest.raises(FormatError, match=field):
        from_metadata(**changes)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {"type": "BPE"}}', "[" * 100_000])
def test_damaged_json(text, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        Tokenizer.from_source(TokenizerSource(tmp_path, path), CONFIG)


def test_a_decoder_of_another_kind(tmp_path):
    other = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    other.decoder = tokenizers.decoders.WordPiece()
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FormatError, match="WordPiece"):
        Tokenizer.from_source(TokenizerSource(tmp_path, tmp_path / "tokenizer.json"), CONFIG)


def test_no_tokenizer():
    assert Tokenizer.from_source(TokenizerSource(FOLDER, metadata={}), CONFIG) is None
    assert Tokenizer.from_source(TokenizerSource(FOLDER), CONFIG) is None


# llama-3's own vocabulary -------------------------------------------------------------------------


@pytest.mark.skipif(
    not VOCABS,
    reason="BITNET_TEST_VOCABS does not name a folder with "
    "ggml-vocab-llama-bpe.gguf, .inp and .out (llama.cpp's models folder)",
)
@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "llama-spm", "falcon", "gpt-2"])
def test_published_vectors(name):
    path = Path(VOCABS, f"ggml-vocab-{name}.gguf")
    if not path.exists():
        pytest.skip(f"no {path.name} there")
    file = GGUFFile(path)
    ids = [file.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos")]
    config = SimpleNamespace(vocab_size=200_000, bos_token_id=ids[0], eos_token_ids=tuple(ids[1:]))
    tokenizer = Tokenizer.from_source(TokenizerSource(path, metadata=file.metadata), config)
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().split("\n")[: len(texts)]
    assert len(texts) == 47
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer.encode(text, add_bos=False) == [int(i) for i in line.split()]
        assert tokenizer.decode(tokenizer.encode(text)) == text
