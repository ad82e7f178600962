"""The public API on small real files: text, scores, sessions, limits, and what closing leaves."""

import asyncio
import gc
import threading

import numpy as np
import pytest
from support.paths import DATA
from support.talker import TALKER, kv_bytes

import bitnet
from bitnet import ContextFull
from bitnet.checkpoints import weights
from bitnet.generation.request import Request
from bitnet.generation.sampling import Sampling, make_sampler
from bitnet.generation.scheduler import Scheduler
from bitnet.generation.stopping import StopConditions
from bitnet.models.transformer import Transformer
from bitnet.runtime.pool import Pool

GGUF = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
FIXTURES = [TALKER, DATA / "hf_bitnet_online", GGUF]
PROMPT = "A ternary weight has"
SAMPLED = {"temperature": 4.0, "top_p": 0.99, "max_tokens": 40}


@pytest.fixture(scope="module")
def model(no_limit):
    with bitnet.load(TALKER, slots=3, threads=1, prefix_cache=False) as loaded:
        yield loaded


# text ---------------------------------------------------------------------------------------------


def test_three_hundred_tokens_as_in_transformers(model, stored):
    done = model.generate(stored["greedy_prompt"], temperature=0, max_tokens=300)
    assert done.token_ids == stored["greedy_ids"].tolist()
    assert (done.finish_reason, done.prompt_tokens, done.completion_tokens) == ("length", 20, 300)
    assert done.text == model.tokenizer.decode(stored["greedy_ids"])
    assert kv_bytes(model) == 0


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.name)
def test_logits_agree_with_the_reference(path):
    stored = np.load((path if path.is_dir() else path.parent) / "reference.npz", allow_pickle=False)
    with bitnet.load(path, kv_dtype="f32") as loaded:
        for j in range(int(stored["n"])):
            ours = loaded.logits(stored[f"ids_{j}"])
            assert ours.shape == (len(stored[f"ids_{j}"]), loaded.config.vocab_size)
            theirs = stored[f"logits_{j}"].astype(np.float64)
            error = np.square(ours[stored[f"pos_{j}"]] - theirs).sum() / np.square(theirs).sum()
            assert np.sqrt(error) < 5e-5


def test_the_same_seed_gives_the_same_text(model, stored):
    expected = model.generate(PROMPT, seed=5, **SAMPLED)
    others = [model.generate(PROMPT, seed=seed, **SAMPLED).text for seed in (6, 7)]
    assert len({expected.text, *others}) == 3
    assert "".join(model.stream(PROMPT, seed=5, **SAMPLED)) == expected.text
    batch = model.generate([PROMPT, "The", PROMPT, "One row", "x"], seed=5, **SAMPLED)
    assert batch[0].token_ids == batch[2].token_ids == expected.token_ids
    assert batch[1].text == model.generate("The", seed=5, **SAMPLED).text
    for threads in (2, 3):
        model.threads = threads
        assert model.generate(PROMPT, seed=5, **SAMPLED).token_ids == expected.token_ids
    model.threads = 1
    assert model.generate(PROMPT, seed=expected.seed, **SAMPLED).text == expected.text


@pytest.mark.parametrize("max_batch", [1, 3, 64])
def test_chunk_sizes_do_not_matter(model, max_batch):
    prompt = model.tokenizer.encode("Each row of a matrix is packed, four weights to a byte, and")
    expected = model.generate(prompt, seed=9, **SAMPLED).token_ids
    pool = Pool(1 << 28)
    with weights.open(TALKER) as files:
        transformer = Transformer(files, pool, context=512, max_batch=max_batch, max_sequences=3)
        sampling = Sampling(temperature=4.0, top_p=0.99, seed=9)
        limits = StopConditions(40, (), frozenset())
        requests = [Request(prompt[i:], make_sampler(sampling, 384), limits) for i in (0, 1, 0)]
        done = Scheduler(transformer, slots=3).complete(requests)
    assert done[0].token_ids == done[2].token_ids == expected
    assert done[1].token_ids != expected


def test_a_seed_is_told_and_can_be_used_again(model):
    done = model.generate(PROMPT, **SAMPLED)
    assert model.generate(PROMPT, seed=done.seed, **SAMPLED).text == done.text
    assert model.generate(PROMPT, **SAMPLED).seed != done.seed


def test_the_models_own_settings_are_the_default(model):
    own = model.config
    assert (own.do_sample, own.temperature, own.top_p) == (True, 0.6, 0.9)
    explicit = model.generate("x", seed=1, temperature=0.6, top_p=0.9, max_tokens=30)
    assert model.generate("x", seed=1, max_tokens=30).text == explicit.text
    hot = {"seed": 1, "temperature": 3.0, "max_tokens": 30}
    assert model.generate("x", **hot).text == model.generate("x", top_p=0.9, **hot).text
    assert model.generate("x", **hot).text != model.generate("x", top_p=1.0, **hot).text
    with bitnet.load(GGUF) as other:
        assert not other.config.do_sample
        assert len({other.generate("x", max_tokens=8).text for _ in range(3)}) == 1


def test_prompts_of_every_form(model, stored):
    ids = model.tokenizer.encode(PROMPT)
    options = {"temperature": 0, "max_tokens": 5}
    expected = model.generate(PROMPT, **options).text
    assert model.generate(ids, **options).text == expected
    assert model.generate(np.array(ids), **options).text == expected
    assert model.generate(tuple(ids), **options).text == expected
    both = model.generate([ids, PROMPT, np.array(ids)], **options)
    assert [one.text for one in both] == [expected] * 3
    assert model.generate([], **options) == []
    assert str(both[0]) == expected


def test_special_tokens_in_prompts(model):
    end = model.tokenizer.eos_ids[0]
    asked = {"max_tokens": 1, "temperature": 0}
    text = model.generate("a<|end_of_text|>", **asked)
    token = model.generate("a<|end_of_text|>", parse_special=True, **asked)
    assert text.prompt_tokens > token.prompt_tokens
    assert token.text == model.generate([*model.tokenizer.encode("a"), end], **asked).text


def test_stop_strings(model):
    full = model.generate(PROMPT, temperature=0, max_tokens=60).text
    done = model.generate(PROMPT, temperature=0, max_tokens=60, stop="multiplier")
    assert done.text == full[: full.index("multiplier")]
    assert (done.finish_reason, done.stop) == ("stop", "multiplier")
    pieces = list(model.stream(PROMPT, temperature=0, max_tokens=60, stop=["zzz", "multiplier"]))
    assert "".join(pieces) == done.text


def test_the_context_ends(model):
    with bitnet.load(TALKER, context=24, prefix_cache=False) as small:
        done = small.generate(PROMPT, temperature=0, max_tokens=300)
        assert done.finish_reason == "context"
        assert done.prompt_tokens + done.completion_tokens == 25
        with pytest.raises(ContextFull, match="24"):
            small.generate(PROMPT, temperature=0, context_end="error")
        with pytest.raises(ContextFull):
            small.generate("word " * 100)
        with pytest.raises(ContextFull):
            small.generate("word " * 2_000_000)  # refused before it is encoded
        with pytest.raises(ContextFull):
            small.chat([{"role": "user", "content": "word " * 100_000}])
        assert kv_bytes(small) == 0


def test_chat(model):
    messages = [{"role": "user", "content": "What is a ternary weight?"}]
    done = model.chat(messages, temperature=0, max_tokens=20)
    ids = model.tokenizer.chat(messages)
    assert done.token_ids == model.generate(ids, temperature=0, max_tokens=20).token_ids
    assert done.prompt_tokens == len(ids)
    stream = model.chat_stream(messages, temperature=0, max_tokens=20)
    assert "".join(stream) == done.text
    assert stream.completion.token_ids == done.token_ids


def test_chat_of_the_gguf_file_with_the_wrong_template():
    with bitnet.load(GGUF) as other:
        text = other.tokenizer.chat_template.render([{"role": "user", "content": "x"}])
        assert text == "User: x<|eot_id|>Assistant: "
        assert other.tokenizer.encode("<|eot_id|>", False, True)[0] in other.tokenizer.eos_ids


# streams ------------------------------------------------------------------------------------------


def test_a_stream_knows_its_completion(model):
    stream = model.stream(PROMPT, temperature=0, max_tokens=10)
    assert stream.completion is None
    text = "".join(stream)
    assert stream.completion.text == text
    assert stream.completion.completion_tokens == 10


@pytest.mark.parametrize("leave", [lambda s: s.close(), lambda s: s.__exit__(None, None, None)])
def test_leaving_a_stream_frees_its_memory(model, leave):
    stream = model.stream(PROMPT, temperature=0)
    next(stream)
    assert kv_bytes(model) > 0
    leave(stream)
    assert kv_bytes(model) == 0
    assert list(stream) == []


def test_a_forgotten_stream_frees_its_memory(model):
    stream = model.stream(PROMPT, temperature=0)
    next(stream)
    del stream
    gc.collect()
    assert kv_bytes(model) == 0


def test_asynchronous_streams(model):
    async def collect(prompt):
        return "".join([piece async for piece in model.astream(prompt, seed=5, **SAMPLED)])

    async def several():
        return await asyncio.gather(*map(collect, [PROMPT, "The", "x", "One"]))

    expected = [model.generate(p, seed=5, **SAMPLED).text for p in (PROMPT, "The", "x", "One")]
    assert asyncio.run(several()) == expected


def test_leaving_an_asynchronous_stream(model):
    async def leave():
        stream = model.astream(PROMPT, temperature=0, max_tokens=10_000)
        async for _ in stream:
            break
        await stream.aclose()

    async def cancel():
        async def run():
            async for _ in model.astream(PROMPT, temperature=0, max_tokens=10_000):
                started.set()

        started = asyncio.Event()
        task = asyncio.create_task(run())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for way in (leave, cancel):
        asyncio.run(way())
        model.generate("x", max_tokens=1)  # waits for a step that was still running
        assert kv_bytes(model) == 0


def test_several_threads(model):
    prompts = [PROMPT, "The", "One row", "x"] * 2
    expected = {p: model.generate(p, seed=5, **SAMPLED).text for p in prompts}
    found = []
    threads = [
        threading.Thread(
            target=lambda p=p: found.append((p, model.generate(p, seed=5, **SAMPLED).text))
        )
        for p in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted((p, expected[p]) for p in prompts)
    assert kv_bytes(model) == 0


# scores -------------------------------------------------------------------------------------------


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("n_context", [1, 20, 70])
def test_loglikelihood_is_that_of_the_logits(model, stored, n_context):
    ids = np.concatenate([stored["greedy_prompt"], stored["greedy_ids"][:60]])
    table = log_softmax(model.logits(ids))
    expected = sum(table[i - 1, ids[i]] for i in range(n_context, len(ids)))
    value, is_greedy = model.loglikelihood(ids[:n_context].tolist(), ids[n_context:].tolist())
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert is_greedy
    ids[-3] = 5
    value, is_greedy = model.loglikelihood(ids[:n_context].tolist(), ids[n_context:].tolist())
    assert not is_greedy and value < expected - 1


def test_loglikelihood_of_texts(model):
    value, is_greedy = model.loglikelihood(PROMPT, " three values")
    assert is_greedy and -1 < value < 0
    assert model.loglikelihood(PROMPT + " ", "three values") == (value, is_greedy)
    worse, is_greedy = model.loglikelihood(PROMPT, " four values")
    assert worse < value and not is_greedy
    empty = model.loglikelihood("", PROMPT)  # after the begin token
    assert empty[0] < 0


def test_scores_that_cannot_be(model):
    for context, continuation in ((PROMPT, ""), ([], [1]), ([1], [])):
        with pytest.raises(ValueError, match=r"at least 1 token each|tokens: none"):
            model.loglikelihood(context, continuation)
    with pytest.raises(ValueError, match="vocabulary"):
        model.logits([5, 384])
    with pytest.raises(ValueError, match="tokens"):
        model.logits([])
    with pytest.raises(ValueError, match="float64"):
        model.logits([1.5])
    for ids in ([1] * 513, [[1] * 500, [1] * 14]):
        with pytest.raises(ContextFull, match=r"51[23]"):
            model.logits(ids) if len(ids) > 2 else model.loglikelihood(*ids)
    assert kv_bytes(model) == 0


# sessions -----------------------------------------------------------------------------------------


def test_a_session_is_the_model_step_by_step(model, stored):
    ids = stored["greedy_prompt"]
    with model.session() as session:
        token = int(session.feed(ids).argmax())
        found = [token]
        for _ in range(30):
            found.append(int(session.decode(found[-1]).argmax()))
        assert found == stored["greedy_ids"][:31].tolist()
        assert session.token_ids == [*ids.tolist(), *found[:-1]]
        assert session.length == len(ids) + 30
        assert kv_bytes(model) == session.nbytes > 0
    assert kv_bytes(model) == 0


def test_forks_and_trims_do_not_disturb_each_other(model, stored):
    ids = np.concatenate([stored["greedy_prompt"], stored["greedy_ids"][:120]]).tolist()
    expected = model.logits(ids)
    with model.session() as session:
        session.feed(ids[:130])
        with session.fork() as twin:
            twin.feed([7, 8, 9])
            assert np.array_equal(session.feed(ids[130:]), expected[-1])
            twin.trim(130)
            assert np.array_equal(twin.feed(ids[130:]), expected[-1])
        session.trim(10)
        assert session.token_ids == ids[:10]
        assert np.array_equal(session.decode(ids[10]), expected[10])


def test_a_session_that_cannot_go_on_is_as_before(model, stored):
    ids = stored["greedy_prompt"].tolist()
    with model.session(capacity=300) as session:
        session.feed(ids)
        for bad in ([1] * 281, [384], [-1], []):
            with pytest.raises((ContextFull, ValueError)):
                session.feed(bad)
            assert session.token_ids == ids
        assert session.length == len(ids)
        assert np.array_equal(session.decode(3), model.logits([*ids, 3])[-1])
    with pytest.raises(ValueError, match="closed"):
        session.feed([1])
    with pytest.raises(ValueError, match="capacity"):
        model.session(capacity=model.context + 1)


@pytest.mark.parametrize(
    "bad", [[1, 2.5], [1.0], np.ones((2, 2), int), "abc", None, 3, [True], [2**70], [[1], [1, 2]]]
)
def test_token_ids_are_whole_numbers_in_a_row(model, bad):
    with model.session() as session:
        for use in (session.feed, session.best, model.logits):
            with pytest.raises(ValueError, match="tokens: "):
                use(bad)
        assert session.length == 0
        with pytest.raises(ValueError, match=r"tokens: .* \(whole numbers in a row\)"):
            session.feed(bad)
        session.feed(np.array([1, 2], np.uint16))
        for length in (None, 1.0, True, 3, -1):
            with pytest.raises(ValueError, match=r"length: .* \(a whole number from 0 to 2\)"):
                session.trim(length)
        assert session.token_ids == [1, 2]


@pytest.mark.parametrize("stop", [5, {"a"}, [""], [5], ""])
def test_stop_strings_are_strings(model, stop):
    with pytest.raises(ValueError, match="stop: "):
        model.generate(PROMPT, stop=stop)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_best_token_of_what_is_not_finite(model, value):
    transformer = model.scheduler.transformer

    def spoil(s, batch):
        s.hidden.array()[:] = value

    last, transformer.layers[-1] = transformer.layers[-1], spoil
    try:
        with model.session() as session, pytest.raises(bitnet.NotFinite, match="position 2"):
            session.best([1, 2])
        with pytest.raises(bitnet.NotFinite):
            model.generate(PROMPT, temperature=0)
    finally:
        transformer.layers[-1] = last


def test_errors_in_place(model):
    prompts = [PROMPT, [1] * 600, "and", [-1], "a " * 600, []]
    with pytest.raises(ContextFull):
        model.generate(prompts, max_tokens=3, temperature=0)
    results = model.generate(prompts, errors="return", max_tokens=3, temperature=0)
    alone = [model.generate(p, max_tokens=3, temperature=0).token_ids for p in (PROMPT, "and")]
    assert [results[i].token_ids for i in (0, 2)] == alone
    kinds = [type(results[i]) for i in (1, 3, 4, 5)]
    assert kinds == [ContextFull, ValueError, ContextFull, ValueError]
    full = model.generate([[3] * 512, [3]], errors="return", context_end="error", max_tokens=2)
    assert isinstance(full[0], ContextFull) and full[1].completion_tokens == 2
    with pytest.raises(ValueError, match="temperature"):
        model.generate([PROMPT], errors="return", temperature=-1)
    with pytest.raises(ValueError, match="errors: 'ignore'"):
        model.generate([PROMPT], errors="ignore")
    with pytest.raises(ContextFull):  # of one prompt
        model.generate([1] * 600, errors="return")


def test_loglikelihood_of_as_many_tokens_as_the_context_and_one(model):
    ids = [3 + i % 300 for i in range(513)]  # the last one is not fed
    score, _ = model.loglikelihood(ids[:500], ids[500:])
    logits = model.logits(ids[:512])[499:].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert score == pytest.approx(logs[np.arange(13), ids[500:]].sum(), abs=1e-3)
    with pytest.raises(ContextFull):
        model.loglikelihood(ids, [3])
