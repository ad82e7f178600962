"""Stop strings, characters and limits: what becomes text, and when it ends."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mock_model import BOS, END, EOT, ByteTokenizer, MockTransformer, says

from bitnet import ContextFull
from bitnet.generation.detokenizer import Detokenizer
from bitnet.generation.request import Request
from bitnet.generation.sampling import Sampling, make_sampler
from bitnet.generation.scheduler import Scheduler
from bitnet.generation.stopping import StopConditions

EOS = frozenset((END, EOT))


def run(text, prompt=(BOS,), then=END, context=512, **limits):
    """(pieces as streamed, Completion) of a scripted reply."""
    script = says(text, then)
    script.n_prompt = len(prompt)
    engine = Scheduler(MockTransformer(script, context=context))
    limits = StopConditions(**{"eos_ids": EOS, **limits})
    text = Detokenizer(ByteTokenizer().stream(), limits.stop)
    request = Request(prompt, make_sampler(Sampling(seed=3), 300), limits, text)
    pieces = list(engine.stream(request))
    assert "".join(pieces) == request.completion.text
    assert not engine.transformer.open_parts
    return pieces, request.completion


def test_an_end_token_stops():
    for end in (END, EOT):
        pieces, done = run("Hello", then=end)
        assert pieces == list("Hello")
        assert (done.text, done.finish_reason, done.stop) == ("Hello", "stop", None)
        assert done.token_ids == [*b"Hello", end]
        assert (done.prompt_tokens, done.completion_tokens, done.seed) == (1, 6, 3)
        assert done.prompt_tps > 0 and done.generation_tps > 0


def test_max_tokens():
    _, done = run("Hello", max_tokens=3)
    assert (done.text, done.finish_reason, done.completion_tokens) == ("Hel", "length", 3)
    _, done = run("Hello", max_tokens=5)
    assert (done.text, done.finish_reason) == ("Hello", "length")
    _, done = run("Hello", max_tokens=6)
    assert (done.text, done.finish_reason) == ("Hello", "stop")
    _, done = run("Hello", max_tokens=1)
    assert (done.text, done.generation_tps) == ("H", 0)


def test_the_end_of_the_context():
    prompt = (BOS, *b"abc")
    _, done = run("Hello", prompt, context=6)
    assert (done.text, done.finish_reason) == ("Hel", "context")  # the last is not fed
    _, done = run("Hello", prompt, context=4)
    assert (done.text, done.finish_reason) == ("H", "context")
    _, done = run("Hello", prompt, context=6, max_tokens=3)
    assert done.finish_reason == "length"
    _, done = run("Hel", prompt, context=7)
    assert done.finish_reason == "stop"
    with pytest.raises(ContextFull) as error:
        run("Hello", prompt, context=6, context_end="error")
    assert (error.value.length, error.value.capacity) == (6, 6)
    with pytest.raises(ContextFull):
        run("Hello", prompt, context=3)


def test_a_character_of_four_tokens_comes_in_one_piece():
    pieces, _ = run("a🦙é日b")
    assert pieces == ["a", "🦙", "é", "日", "b"]


def test_a_character_that_is_cut_off():
    pieces, done = run("a🦙", max_tokens=3)
    assert pieces == ["a", "\ufffd"]
    assert done.finish_reason == "length"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STO two", ["STOP"], "one STO two"),
        ("STOP", ["STOP"], ""),
        ("SSTOP", ["STOP"], "S"),
        ("ST", ["STOP"], "ST"),
        ("aaab", ["aab"], "a"),
        ("abababac", ["ababac"], "ab"),
        ("x\n\nUser:", ["\n\nUser", "\n\n"], "x"),
        ("日本語。終", ["。"], "日本語"),
        ("a🦙b", ["🦙"], "a"),
        ("abcd", ["bcd", "c"], "ab"),
        ("abc", ["abc", "bc"], ""),
    ],
)
def test_stop_strings(text, stop, expected):
    pieces, done = run(text, stop=tuple(stop))
    assert done.text == expected
    assert (done.stop in stop) == (text != expected)
    assert all(pieces)
    assert done.finish_reason == "stop"


def test_only_what_may_be_a_stop_string_is_held_back():
    pieces, _ = run("one STAR two", stop=("STOP",))
    assert pieces == ["o", "n", "e", " ", "STA", "R", " ", "t", "w", "o"]
    pieces, _ = run("one S", stop=("STOP",))
    assert pieces == ["o", "n", "e", " ", "S"]


class _Words:
    """A stand-in for a tokenizer's stream: token i is word i."""

    def __init__(self, words):
        self.words = words

    def push(self, i):
        return self.words[i]

    def finish(self):
        return ""


@given(
    st.text("ab", max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 20), max_size=5),
)
def test_the_cut_into_tokens_does_not_matter(text, stop, cuts):
    cuts = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    words = [text[a:b] for a, b in pairwise(cuts)]
    results = set()
    for parts in (words, list(text), [text]):
        assembler = Detokenizer(_Words(parts), tuple(stop))
        out = ""
        for i in range(len(parts)):
            piece = assembler.push(i)
            out += piece
            if assembler.stopped is not None:
                break
            held = len("".join(parts[: i + 1])) - len(out)
            assert held < max(map(len, stop), default=1)
        results.add((out + assembler.finish(), assembler.stopped))
    assert len(results) == 1
    ((out, stopped),) = results
    assert not any(s in out for s in stop)
    assert (stopped is None) == (out == text)


@pytest.mark.parametrize(
    ("limits", "where"),
    [
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens: 1.5"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": ("",)}, "stop: ''"),
        ({"stop": (5,)}, "stop: 5"),
        ({"context_end": "shift"}, "stop or error or window"),
    ],
)
def test_limits_out_of_range(limits, where):
    with pytest.raises(ValueError, match=where):
        StopConditions(**limits)
