"""What a notebook or a debugger shows of the objects of the API, and what they cannot do there."""

import asyncio
import copy
import dataclasses
import pickle
import re

import pytest

import bitnet

TALK = [{"role": "user", "content": "Who is there?"}]


@pytest.fixture
def own_model():
    with bitnet.load(threads=1) as one:
        yield one


def test_short_names_while_open_and_when_closed(own_model):
    model, tokenizer = own_model, own_model.tokenizer
    session = model.session(16)
    session.feed([5, 6, 7])
    stream = model.stream("And so", max_tokens=3, temperature=0)
    assert repr(model) == "<Model model.gguf: bitnet-b1.58, context 512>"
    assert repr(session) == f"<Session: 3 of {session.capacity} tokens>"
    assert repr(stream) == "<Stream: 0 tokens, not complete>"
    next(stream)
    assert re.fullmatch("<Stream: [123] tokens, (not )?complete>", repr(stream))
    text = "".join(stream)
    assert text and repr(stream) == "<Stream: 3 tokens, complete>"
    shown = repr(tokenizer)
    bos, eos = tokenizer.bos_id, list(tokenizer.eos_ids)
    assert shown == f"<Tokenizer: bos {bos}, eos {eos}, a chat template>"
    cancelled = model.stream("And so", max_tokens=300)
    next(cancelled)
    session.close()
    assert repr(session) == "<Session: closed>"
    second = model.session(16)
    model.close()
    assert repr(model) == "<Model model.gguf: bitnet-b1.58, context 512, closed>"
    assert repr(second) == "<Session: closed>" and repr(tokenizer) == shown
    assert repr(cancelled).endswith("tokens, Cancelled>")


def test_a_completion_in_a_notebook(model):
    done = model.generate("And so", max_tokens=4, temperature=0)
    shown = dataclasses.replace(done, text="a <b> & \n c")._repr_html_()
    assert "a &lt;b&gt; &amp; \n c" in shown and f"seed {done.seed}" in shown
    assert "4 tokens (length)" in shown and f"prompt {done.prompt_tokens} tokens" in shown


def test_a_memory_report_in_a_notebook(model):
    report = model.memory()
    rows = re.findall(r"<tr>(.*?)</tr>", report._repr_html_())
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    lines = str(report).splitlines()
    assert len(cells) == len(lines) > 10 and {len(row) for row in cells} == {5}
    for row, line in zip(cells, lines, strict=True):
        assert " ".join(filter(None, row)).split() == line.split()


def test_a_model_stays_in_its_process(own_model):
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"load it there, bitnet\.load\('.*model\.gguf'\)"):
            send(own_model)


def test_what_belongs_to_a_model_stays_there_too(own_model):
    with own_model.session() as session, own_model.stream("And so", max_tokens=2) as stream:
        for send in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="load its model there and restore it"):
                send(session)
            with pytest.raises(TypeError, match="a Stream is of its process"):
                send(stream)
        session.close()
        with pytest.raises(TypeError, match="load its model there"):
            pickle.dumps(session)
    tokenizer = own_model.tokenizer
    with pytest.raises(TypeError, match=r"load its model there, bitnet\.load"):
        pickle.dumps(tokenizer)
    assert copy.copy(tokenizer) is copy.deepcopy(tokenizer) is tokenizer


def test_completions_and_errors_travel(model):
    done = model.generate("And so", max_tokens=2, temperature=0)
    assert pickle.loads(pickle.dumps(done)) == done
    error = bitnet.ContextFull(0, 11, 10)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_asynchronous_reply(model):
    async def collect():
        return "".join([text async for text in model.achat_stream(TALK, seed=3, max_tokens=9)])

    assert asyncio.run(collect()) == model.chat(TALK, seed=3, max_tokens=9).text
