"""logits_processors= and stopping=: functions of the caller within a generation."""

import numpy as np
import pytest

import bitnet

PROMPT = "And the king said"
GREEDY = {"temperature": 0, "max_tokens": 12}
REPETITIVE = {"speculative": "ngram", "max_tokens": 40, "temperature": 0}


def unchanged(token_ids, logits):
    return logits


@pytest.mark.parametrize("options", [GREEDY, {"temperature": 0.9, "seed": 4, "max_tokens": 12},
                                     REPETITIVE])  # fmt: skip
def test_a_processor_that_changes_nothing_changes_no_text(model, options):
    expected = model.generate(PROMPT, **options).token_ids
    assert model.generate(PROMPT, logits_processors=[unchanged], **options).token_ids == expected


def test_processors_choose_tokens_and_see_all_that_came(model):
    prompt, seen = model.tokenizer.encode(PROMPT), []

    def only_the_next(token_ids, logits):
        assert logits.dtype == np.float32 and logits.shape == (model.config.vocab_size,)
        seen.append(token_ids)
        logits[:] = -np.inf
        logits[token_ids[-1] + 1] = 1
        return logits

    done = model.generate(prompt, logits_processors=[only_the_next], **GREEDY)
    assert done.token_ids == [prompt[-1] + 1 + i for i in range(12)]
    assert seen == [prompt + done.token_ids[:i] for i in range(12)]
    sampled = model.generate(prompt, logits_processors=[only_the_next], temperature=2, max_tokens=3)
    assert sampled.token_ids == done.token_ids[:3]


def test_they_run_in_order_and_beside_others(model):
    first = model.generate(PROMPT, **GREEDY).token_ids[0]
    plus = lambda ids, logits: logits + 100 * (np.arange(len(logits)) == 300)  # noqa: E731
    forbid = lambda ids, logits: np.where(np.arange(len(logits)) == 300, -np.inf, logits)  # noqa: E731
    requests = [[plus], [plus, forbid], []]
    chosen = [
        model.generate(PROMPT, temperature=0, max_tokens=1, logits_processors=p).token_ids[0]
        for p in requests
    ]
    assert chosen == [300, first, first]


def test_a_stopping_function_ends_the_text(model):
    prompt = model.tokenizer.encode(PROMPT)
    expected, seen = model.generate(prompt, **GREEDY), []

    def at_five(token_ids):
        seen.append(list(token_ids))
        return len(token_ids) == len(prompt) + 5

    for options in (GREEDY, {**GREEDY, "speculative": "ngram"}):
        seen.clear()
        done = model.generate(prompt, stopping=at_five, **options)
        assert (done.token_ids, done.finish_reason) == (expected.token_ids[:5], "stop")
        assert seen == [prompt + done.token_ids[: i + 1] for i in range(5)]
        assert expected.text.startswith(done.text)
    later = model.generate(prompt, stopping=lambda ids: True, min_tokens=3, **GREEDY)
    assert later.completion_tokens == 3


def fails(*arguments):
    raise KeyError("mine")


def calls_the_model(model):
    return lambda ids: bool(model.generate("x", max_tokens=1))


def test_what_a_function_raises_ends_its_own_generation(model):
    for hooks in ({"logits_processors": [fails]}, {"stopping": fails}):
        with pytest.raises(KeyError, match="mine"):
            model.generate(PROMPT, **hooks, **GREEDY)
    with pytest.raises(RuntimeError):
        model.generate(PROMPT, stopping=calls_the_model(model), **GREEDY)
    for process, said in [
        (lambda ids, logits: logits[:-1], r"logits_processors\[0\]: logits of shape"),
        (lambda ids, logits: logits - np.inf, "they forbid every token"),
    ]:
        with pytest.raises(ValueError, match=said):
            model.generate(PROMPT, logits_processors=[process], **GREEDY)
    with pytest.raises(bitnet.NotFinite):
        model.generate(PROMPT, logits_processors=[lambda i, x: x * np.nan], **GREEDY)
    assert model.generate(PROMPT, **GREEDY).completion_tokens == 12


def test_what_is_no_function(model):
    for name, value, said in [
        ("logits_processors", [3], r"logits_processors\[0\]: 3"),
        ("logits_processors", unchanged, "logits_processors: .*a list of functions"),
        ("stopping", "stop", "stopping: 'stop'"),
    ]:
        with pytest.raises(ValueError, match=said):
            model.generate(PROMPT, **{name: value})
