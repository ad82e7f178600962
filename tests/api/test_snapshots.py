"""States that cannot go back are kept where the next turn of a conversation agrees with this one:
the tokens that each turn computes, and text as without."""

import numpy as np
import pytest
from support import hybrid_models as models

import bitnet
from bitnet.generation import snapshots
from bitnet.models.transformer import Transformer

# As Qwen3.5's: a reply begins inside its reasoning, which earlier replies are shown without.
TEMPLATE = (
    "{%- for message in messages %}"
    "{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
OPTIONS = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
FIRST = [{"role": "user", "content": "What is a state? " * 3}]
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nWhat a layer remembers."}
SECOND = [*FIRST, ANSWER, {"role": "user", "content": "And a snapshot?"}]
EDITED = [*FIRST, ANSWER, {"role": "user", "content": "And a key?"}]
THIRD = [*SECOND, {"role": "assistant", "content": "A copy."}, {"role": "user", "content": "Why?"}]


def load(**options):
    defaults = {"threads": 1, "chat_template": TEMPLATE}
    return bitnet.load(models.GGUF, **(defaults | options))


class Rows:
    """Counts the rows of all forward passes."""

    def __init__(self, monkeypatch):
        self.n, forward = 0, Transformer.forward

        def counted(transformer, token_ids, *arguments, **options):
            self.n += len(token_ids)
            return forward(transformer, token_ids, *arguments, **options)

        monkeypatch.setattr(Transformer, "forward", counted)


@pytest.fixture
def rows(monkeypatch):
    return Rows(monkeypatch)


def shown(model, messages):
    """Tokens of messages as every later turn shows them."""
    return len(model.encode_chat(messages, add_generation_prompt=False))


def turn(model, rows, messages):
    """(tokens of the prompt that were not computed, completion); all others were, once."""
    rows.n = 0
    done = model.chat(messages, **OPTIONS)
    assert rows.n == done.prompt_tokens - done.cached_tokens + OPTIONS["max_tokens"] - 1
    return done.cached_tokens, done


def test_a_turn_computes_what_is_new(rows):
    turns = [FIRST, SECOND, THIRD, THIRD, EDITED, THIRD]
    with load(prefix_cache=False) as model:
        expected = [model.chat(messages, **OPTIONS).token_ids for messages in turns]
    with load(snapshots=8) as model:
        found = [turn(model, rows, messages) for messages in turns]
        first, second, third = (shown(model, messages) for messages in (FIRST, SECOND, THIRD))
        # the third again: a regenerated reply; then an edited last message
        assert [n for n, _ in found] == [0, first, second, third, first, third]
    assert [done.token_ids for _, done in found] == expected


def test_a_reply_that_is_shown_as_it_was_need_not_be_read_again(rows):
    """A template that keeps all: the next turn computes its own message alone, but the last token
    of the reply, which nothing has read yet."""
    with load(chat_template=None) as model:
        prompt = model.encode_chat(FIRST)
        reply = model.generate(prompt, **OPTIONS).token_ids
        more = [7, 8, 9, 10]
        rows.n = 0
        done = model.generate([*prompt, *reply, *more], max_tokens=1, temperature=0)
        assert done.cached_tokens == len(prompt) + len(reply) - 1
        assert rows.n == 1 + len(more)


def test_none_are_kept_where_they_are_switched_off():
    with load(snapshots=0) as model:
        for _ in range(2):
            assert model.chat(FIRST, **OPTIONS).cached_tokens == 0
        assert len(model.scheduler.prefix_cache) == 0
        assert "snapshots" not in {n.purpose: n.what for n in model.needs}["state"]


def test_those_used_last_are_kept(rows):
    with load(snapshots=2) as model:
        for messages in (FIRST, SECOND, THIRD):
            turn(model, rows, messages)
        assert len(model.scheduler.prefix_cache) == 2
        assert turn(model, rows, THIRD)[0] == shown(model, THIRD)
        assert turn(model, rows, SECOND)[0] == 0


def test_long_prompts_have_more(monkeypatch):
    monkeypatch.setattr(snapshots, "EVERY", 32)
    ids = np.random.default_rng(1).integers(10, 250, 150).tolist()
    other = [*ids[:100], *reversed(ids[100:])]
    with load(prefix_cache=False) as model:
        expected = [model.generate(prompt, **OPTIONS).token_ids for prompt in (ids, other)]
    with load(snapshots=10) as model:
        found = [model.generate(prompt, **OPTIONS) for prompt in (ids, other)]
        assert [done.cached_tokens for done in found] == [0, 96]
    assert [done.token_ids for done in found] == expected


def test_places():
    assert snapshots.snapshot_places([1, 2, 3], None) == ()
    assert snapshots.snapshot_places([9, 2, 9, 3, 4], 9) == (2,)
    assert snapshots.snapshot_places([9, 2, 3], 9) == ()
    assert snapshots.snapshot_places([1] * 8192 + [9, 1], 9) == (4096, 8192)
    assert snapshots.snapshot_places([1] * 9000 + [9, 1], 9) == (4096, 8192, 9000)


def test_the_first_token_of_a_reply_is_the_templates():
    with load() as model:
        opener = model.tokenizer.reply_opener
        assert model.tokenizer.token(opener) == "<|im_start|>"
    with load(chat_template="{{ messages[0].content }}") as model:
        assert model.tokenizer.reply_opener is None
    with load(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"
              "{% if add_generation_prompt %}Assistant: {% endif %}") as model:  # fmt: skip
        assert model.tokenizer.reply_opener is None


def test_they_give_way_where_memory_is_short():
    """The pool's limit holds; text is the same."""
    with load(prefix_cache=False, slots=2) as model:
        expected = [model.chat(messages, **OPTIONS).token_ids for messages in (FIRST, SECOND)]
    with load(slots=2) as model:
        bare = sum(n.nbytes for n in model.needs if n.where == "pool")
        state = {n.purpose: n.nbytes for n in model.needs}["state"]
        limit = bare - state // 5 * 4  # without the eight snapshots
        pool = model._pool
        pool.limit = max(limit, pool.reserved)
        found = [model.chat(messages, **OPTIONS).token_ids for messages in (FIRST, SECOND, SECOND)]
        assert model.pool_stats().peak <= pool.limit
    assert found == [*expected, expected[1]]


def test_the_next_process_goes_on_from_the_folder(tmp_path):
    long = [{"role": "user", "content": "A state of a fixed size, again. " * 12}]
    after = [*long, ANSWER, {"role": "user", "content": "Go on"}]
    with load(prefix_cache=False) as model:
        expected = model.chat(after, **OPTIONS).token_ids
    with load(prefix_folder=tmp_path) as model:
        model.chat(long, **OPTIONS)
        place = shown(model, long)
    assert place > 128 and list(tmp_path.iterdir())
    with load(prefix_folder=tmp_path) as model:
        done = model.chat(after, **OPTIONS)
        assert done.cached_tokens == place
    assert done.token_ids == expected
    for path in tmp_path.iterdir():
        damaged = bytearray(path.read_bytes())
        damaged[-500] ^= 4
        path.write_bytes(damaged)
    with load(prefix_folder=tmp_path) as model:
        done = model.chat(after, **OPTIONS)
        assert done.cached_tokens == 0 and done.token_ids == expected


def test_a_small_model_with_a_state_does_not_draft():
    with pytest.raises(ValueError, match="has layers with a state, which cannot go back"):
        load(speculative=models.GGUF)
