"""tokenizer.model: read within bounds, and text to the ids that SentencePiece's library gives."""

import io
import re
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.vocabularies import (
    BYTES,
    CONTROL,
    FOLDER,
    NORMAL,
    SPECIAL,
    USER_DEFINED,
    field,
    piece,
    sentencepiece_model,
    varint,
)

from bitnet.errors import FormatError
from bitnet.text.tokenizer import Tokenizer
from bitnet.text.vocabulary import TokenizerSource
from bitnet.text.vocabulary.pieces import Encoder
from bitnet.text.vocabulary.sentencepiece import read

PIECES = [
    *SPECIAL, *BYTES,
    *((text, -float(i), NORMAL) for i, text in enumerate(["▁", "a", "b", "c", "n", "ab", "bc"])),
    ("▁a", -1.0, NORMAL), ("aa", -2.0, NORMAL), ("aaa", -2.0, NORMAL), ("an", -3.0, NORMAL),
    ("na", -3.0, NORMAL), ("b▁", -4.0, NORMAL), ("▁ab", -9.0, NORMAL),
]  # fmt: skip
CONFIG = SimpleNamespace(vocab_size=300, bos_token_id=1, eos_token_ids=(2,))


@pytest.fixture
def model(tmp_path):
    """Write a tokenizer.model and read it."""

    def make(pieces=PIECES, **settings):
        path = tmp_path / "tokenizer.model"
        path.write_bytes(sentencepiece_model(pieces, **settings))
        return read(path)

    return make


def pieces_of(found, text, added=None):
    encode = Encoder(found, added or {})
    return [found.texts[i] for i in encode(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc", ["▁a", "bc"]),                      # "▁a" before "ab", which comes before "bc"
        ("xabc", ["▁", "<0x78>", "ab", "c"]),
        ("aaaa", ["▁a", "aaa"]),                    # "aa" and "aaa" are of one score: leftmost
        ("xaaaa", ["▁", "<0x78>", "aaa", "a"]),
        ("xanan", ["▁", "<0x78>", "an", "an"]),
        ("b b", ["▁", "b▁", "b"]),                  # a piece may span a word's end
        ("", []),
        (" ", ["▁", "▁"]),
        ("é\n", ["▁", "<0xC3>", "<0xA9>", "<0x0A>"]),
        ("<s>", ["▁", "<0x3C>", "<0x73>", "<0x3E>"]),
    ],
)  # fmt: skip
def test_pieces_by_score(text, expected, model):
    assert pieces_of(model(), text) == expected


def test_spaces(model):
    assert pieces_of(model(space=False), "a  b") == ["a", "▁", "▁", "b"]
    assert pieces_of(model(removes=True), "  a   c ") == ["▁a", "▁", "c"]
    assert pieces_of(model(removes=True), "   ") == []
    assert pieces_of(model(removes=True), "\u2581") == []


def test_without_bytes_what_is_not_spelled_is_one_unknown(model):
    found = model([*SPECIAL, *PIECES[259:]], bytes=False)
    assert pieces_of(found, "xyza") == ["▁", "<unk>", "a"]


def test_user_defined_pieces_are_found_before_all_others(model):
    found = model([*PIECES, ("aab", 0.0, USER_DEFINED), ("▁▁", 0.0, USER_DEFINED)])
    assert pieces_of(found, "caaab") == ["▁", "c", "a", "aab"]
    assert pieces_of(found, "aabc") == ["▁", "aab", "c"]  # the space is not put behind it
    assert pieces_of(found, "c   c") == ["▁", "c", "▁▁", "▁", "c"]


def test_a_unigram_model_takes_the_best_sum(model):
    scored = [("▁", -1.0, 1), ("a", -3.0, 1), ("b", -3.0, 1), ("ab", -5.0, 1), ("aba", -10.0, 1)]
    found = model([*SPECIAL, *BYTES, *scored], unigram=True)
    assert pieces_of(found, "abab") == ["▁", "ab", "ab"]
    assert pieces_of(found, "aab") == ["▁", "a", "ab"]
    assert pieces_of(found, "a\u00e9") == ["▁", "a", "<0xC3>", "<0xA9>"]


def test_a_long_text(model):
    encode, line = Encoder(model(), {}), "ab a  a\n"
    one, two = encode(line), encode(line * 2)
    assert encode(line * 20_000) == one + two[len(one) :] * 19_999


# against the library ------------------------------------------------------------------------------

ALPHABETS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="ab nts\u2581\té", max_size=30),
    st.lists(st.sampled_from(["the ", "cat", " of", "  ", "<tool>", "aa", "-" * 9, "🦙"])).map(
        "".join
    ),
)


def trained(library, **settings):
    words = re.findall("[a-z]+", (FOLDER / "metadata.json").read_text(encoding="utf-8"))
    text = [f"the {word} and the cat of {word} --- {word[::-1]}" for word in words]
    out = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=out,
        normalization_rule_name="identity",
        vocab_size=460,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """[(the library's processor, our encoder)] of models of every kind that is read."""
    library = pytest.importorskip("sentencepiece", reason="compared with it where it is installed")
    found = []
    for kind in ("bpe", "unigram"):
        for i in range(8):
            flags = [bool(i & bit) for bit in (1, 2, 4)]
            own = {"user_defined_symbols": ["<tool>", "aa", "aab"]} if kind == "bpe" else {}
            made = trained(
                library,
                model_type=kind,
                byte_fallback=flags[0],
                add_dummy_prefix=flags[1],
                remove_extra_whitespaces=flags[2],
                **own,
            )
            path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
            path.write_bytes(made)
            processor = library.SentencePieceProcessor(model_proto=made)
            found.append((processor, Encoder(read(path), {})))
    return found


@settings(max_examples=150, deadline=None)
@given(text=ALPHABETS)
def test_the_same_ids_as_the_library(both, text):
    for processor, encode in both:
        assert encode(text) == processor.encode(text)


# as a tokenizer -----------------------------------------------------------------------------------


def tokenizer_of(tmp_path, made, config=CONFIG, **tokenizer_config):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(made)
    source = TokenizerSource(tmp_path, sentencepiece=path, tokenizer_config=tokenizer_config)
    return Tokenizer.from_source(source, config)


def test_a_folder_with_nothing_but_tokenizer_model(tmp_path):
    tokenizer = tokenizer_of(tmp_path, sentencepiece_model(PIECES))
    ids = tokenizer.encode("abc é")
    assert ids[0] == 1 == tokenizer.bos_id
    assert tokenizer.eos_ids == (2,)
    assert tokenizer.decode(ids) == "abc é"
    assert 2 not in tokenizer.encode("a</s>b")
    assert tokenizer.encode("a</s>b", parse_special=True)[2:4] == [2, tokenizer.encode("b")[1]]


def test_tokens_that_the_configuration_adds(tmp_path):
    n = len(PIECES)
    listed = {
        str(n): {"content": "<pad>", "special": True},
        str(n + 2): {"content": "<line>", "special": False},
        "400": {"content": "<image>", "special": True},  # beyond the model's rows
        "1": {"content": "<s>", "special": True},
    }
    tokenizer = tokenizer_of(
        tmp_path, sentencepiece_model(PIECES), added_tokens_decoder=listed, add_eos_token=True
    )
    ids = tokenizer.encode("a<line>a<pad>", add_bos=False)
    assert ids[1] == n + 2 and ids[0] == ids[2] and n not in ids
    assert tokenizer.decode(ids) == "a<line> a<pad>"
    assert tokenizer.encode("<pad>", parse_special=True, add_eos=True) == [1, n, 2]
    assert tokenizer.decode([n + 1]) == ""  # an id that nothing has


def test_a_space_in_front_of_the_prompt_alone(tmp_path):
    made = sentencepiece_model(PIECES)
    text = "a</s>a"
    each = tokenizer_of(tmp_path, made).encode(text, parse_special=True)
    first = tokenizer_of(tmp_path, made, legacy=False).encode(text, parse_special=True)
    assert each == [1, 266, 2, 266]
    assert first == [1, 266, 2, 260]


# damage -------------------------------------------------------------------------------------------

GOOD = sentencepiece_model(PIECES)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (b"\x0a", "ends early"),
        (b"\xff" * 11, "more than 10 bytes"),
        (varint(1 << 3 | 2) + varint(1 << 62) + b"x", "size of field 1: 4611686018427387904"),
        (varint(1 << 3 | 3), "type of field 1: 3"),
        (GOOD + field(1, 7), "a message"),
        (GOOD + field(1, field(1, b"\xff\xfe")), "UTF-8"),
        (GOOD + field(1, b""), "text of 1 to"),
        (GOOD + piece("x" * 2000), "text of 1 to"),
        (GOOD + field(1, field(1, "x") + field(2, b"abc")), "a float"),
        (GOOD + piece("x", float("nan")), "score: nan"),
        (GOOD + piece("x", 3e38), "score: 3"),
        (GOOD + piece("x", 0.0, 1 << 66), "type"),
        (GOOD + piece("x", 0.0, 5), "type: 5"),
        (GOOD + piece("<0xZZ>", 0.0, 6), "<0xZZ>"),
        (GOOD + piece("<0x-1>", 0.0, 6), "<0x-1>"),
        (GOOD + piece("a"), "piece .*: a .once only"),
        (GOOD + piece("<unk2>", 0.0, 2), "unknown piece: 2"),
        (sentencepiece_model(PIECES[1:]), "unknown piece: 0"),
        (sentencepiece_model([*SPECIAL, *BYTES[1:]]), "<0x00>"),
        (sentencepiece_model(PIECES, rules=b"x" * 9), "precompiled_charsmap: nmt_nfkc .identity"),
        (GOOD + field(5, field(2, b"xyz")), "denormalizer_spec"),
        (GOOD + field(2, field(3, 3)), "model_type: 3"),
        (GOOD + field(2, field(24, 1)), "treat_whitespace_as_suffix"),
        (GOOD + field(3, field(5, 0)), "escape_whitespaces"),
        (sentencepiece_model([*PIECES, ("<t>", 0.0, 4)], unigram=True), "user-defined piece: <t>"),
        (b"", "unknown piece: 0"),
    ],
)
def test_damage_and_what_is_not_read(made, message, tmp_path):
    with pytest.raises(FormatError, match=message) as error:
        tokenizer_of(tmp_path, made)
    assert error.value.path == tmp_path / "tokenizer.model"


def test_every_cut_and_many_flipped_bytes_end_in_one_kind_of_error(tmp_path):
    made = sentencepiece_model([*SPECIAL, *BYTES[:2], ("▁", -1.0, NORMAL)], bytes=False)
    changed = [made[:i] for i in range(len(made))]
    changed += [made[:i] + bytes([made[i] ^ bit]) + made[i + 1 :] for i in range(len(made))
                for bit in (1, 128)]  # fmt: skip
    n_errors = 0
    for data in changed:
        try:
            tokenizer_of(tmp_path, data).encode("a b")
        except FormatError:
            n_errors += 1
    assert len(changed) > n_errors > len(changed) / 3


def test_too_many_pieces_and_too_large_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("bitnet.text.vocabulary.sentencepiece.MAX_PIECES", 10)
    with pytest.raises(FormatError, match="more than 10"):
        tokenizer_of(tmp_path, GOOD)
    monkeypatch.setattr("bitnet.text.vocabulary.sentencepiece.MAX_BYTES", 10)
    with pytest.raises(FormatError, match="file size"):
        tokenizer_of(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"-1": {"content": "x"}}, "added_tokens_decoder -1"),
        ({"9" * 30: {"content": "x"}}, "an id"),
        ({"290": {"content": 5}}, "added_tokens_decoder 290: 5"),
        ({"290": []}, "added_tokens_decoder 290"),
        ({"1": {"content": "other"}}, "added_tokens_decoder 1: other .piece 1, <s>"),
        ({"300": {"content": "x", "special": False}}, "below 300"),
    ],
)
def test_damaged_added_tokens(listed, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        tokenizer_of(tmp_path, GOOD, added_tokens_decoder=listed)


def test_more_pieces_than_the_model_has_rows(tmp_path):
    config = SimpleNamespace(vocab_size=200, bos_token_id=1, eos_token_ids=(2,))
    with pytest.raises(FormatError, match="at most 200"):
        tokenizer_of(tmp_path, GOOD, config)


def test_special_tokens_are_special_whatever_the_file_calls_them(tmp_path):
    more = [("<end_of_turn>", 0.0, USER_DEFINED), ("<eos>", 0.0, NORMAL), ("<pad>", 0.0, CONTROL)]
    n = len(PIECES)
    config = SimpleNamespace(vocab_size=300, bos_token_id=1, eos_token_ids=(n + 1,))
    tokenizer = tokenizer_of(tmp_path, sentencepiece_model([*PIECES, *more]), config)
    assert not {n, n + 1, n + 2} & set(tokenizer.encode("a<end_of_turn><eos><pad>"))
    assert tokenizer.eos_ids == (n + 1, n, 2)
