"""What the server takes of a model: requests that are checked and not submitted, and encodings."""

import numpy as np
import pytest

import bitnet
from bitnet import ContextFull
from bitnet.api.load import LoadSettings, load_model

PROMPT = "And the king said"


@pytest.fixture(scope="module")
def model():
    with bitnet.load(threads=1, context=128) as model:
        yield model


class Only:
    """A constraint: these tokens, in this order."""

    def __init__(self, model, token_ids):
        self.n, self.left, self.accepted = model.config.vocab_size, list(token_ids), []

    def allowed(self):
        return np.arange(self.n) == self.left[0]

    def accept(self, token_id):
        self.accepted.append(token_id)
        self.left.pop(0)


def test_a_request_gives_what_generate_gives(model):
    options = {"max_tokens": 5, "temperature": 0.8, "seed": 3, "stop": "\n"}
    request = model.request(model.encode_prompt(PROMPT), n_logprobs=2, **options)
    assert not request.is_done and not request.has_slot
    (done,) = model.scheduler.complete([request])
    assert done.token_ids == model.generate(PROMPT, **options).token_ids
    assert [[len(place), place[0][0]] for place in request.logprobs] == [
        [3, token] for token in done.token_ids
    ]


def test_a_constraint_says_which_tokens_come(model):
    constraint = Only(model, [7, 8, 9])
    request = model.request([1, 2], constraint=constraint, max_tokens=3)
    (done,) = model.scheduler.complete([request])
    assert done.token_ids == constraint.accepted == [7, 8, 9]


def test_encoding_is_that_of_the_tokenizer_within_the_context(model):
    assert model.encode_prompt(PROMPT) == model.tokenizer.encode(PROMPT)
    assert model.encode_prompt(np.array([3, 4])) == [3, 4]
    messages = [{"role": "user", "content": "Who?"}]
    assert model.encode_chat(messages) == model.tokenizer.chat(messages)
    for ids in (lambda: model.encode_prompt("x " * 4000), lambda: model.encode_prompt([1] * 129)):
        with pytest.raises(ContextFull):
            ids()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_tokens": 0}, r"max_tokens: 0 \(a whole number of at least 1\)"),
        ({"temperature": -1}, r"temperature: -1 \(a number from 0.0 to 100.0\)"),
        ({"top_p": 0}, r"top_p: 0 \(a number above 0.0, up to 1.0\)"),
        ({"top_k": 1.5}, r"top_k: 1.5 \(a whole number from 0 to 2147483648\)"),
        ({"context_end": "shift"}, "context_end: 'shift'"),
        ({"speculative": "trie"}, "speculative: 'trie'"),
        ({"context_end": "window"}, "capacity: 128 .at least 257"),
    ],
)
def test_what_is_wrong_is_said_at_the_call(model, options, error):
    with pytest.raises(ValueError, match=error):
        model.request([1, 2], **options)


def test_numbers_of_numpy_are_numbers(model):
    done = model.generate(
        [1, 2], max_tokens=np.int64(2), temperature=np.float32(0), seed=np.int8(1)
    )
    assert done.completion_tokens == 2 and done.seed == 1


def test_a_server_s_model_shares_steps_out_fairly():
    with load_model(None, LoadSettings(threads=1, context=64, slots=2, fair=True)) as model:
        assert model.scheduler.fair and model.scheduler.slots == 2
        assert model.pool_stats().reserved > 0
    with pytest.raises(ValueError, match="the model is closed"):
        _ = model.scheduler
    with bitnet.load(threads=1, context=64) as model:
        assert not model.scheduler.fair
