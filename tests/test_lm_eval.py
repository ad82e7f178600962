"""bitnet.lm_eval against a stub of lm-evaluation-harness, and against itself where installed."""

import importlib
import importlib.util
import logging
import runpy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support import lm_eval_stub
from support.paths import DATA, ROOT

import bitnet

OFFLINE = DATA / "hf_bitnet_offline"
HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HAS_HARNESS, reason="lm_eval is not installed")
QUIET = {"disable_tqdm": True}


def ours():
    return [name for name in sys.modules if name.startswith("bitnet.lm_eval")]


@pytest.fixture(
    scope="module", params=["stub", pytest.param("harness", marks=needs_harness)], autouse=True
)
def adapter(request):
    """The class, on the stub of its base class or on the harness's own."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stub":
            for name in ours():
                patch.delitem(sys.modules, name)
            for name, module in lm_eval_stub.modules().items():
                patch.setitem(sys.modules, name, module)
        yield importlib.import_module("bitnet.lm_eval").BitnetLM
        if request.param == "stub":
            for name in ours():
                del sys.modules[name]


@pytest.fixture(scope="module")
def lm(adapter, model):
    return adapter(model)


def asked(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


PAIRS = [
    ("And the king said unto", " him,"),
    ("And the king said unto ", "him,"),
    ("And the king said unto", " the telephone,"),
    ("It came to pass", " in those days"),
]


def test_numbers_are_those_of_loglikelihood(lm, model):
    found = lm.loglikelihood(asked(*PAIRS), **QUIET)
    assert found == [model.loglikelihood(*pair) for pair in PAIRS]
    assert found[0] == found[1]  # a space of the context belongs to the continuation
    assert found[0][0] > found[2][0]


def test_an_empty_context_is_the_token_that_prompts_begin_with(lm, model):
    ids = model.tokenizer.encode("Hear, O Israel", add_bos=False)
    expected = model.loglikelihood(model.tokenizer.encode(""), ids)
    assert lm.loglikelihood(asked(("", "Hear, O Israel")), **QUIET) == [expected]


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_a_multiple_choice_task_has_the_numbers_of_transformers(adapter, batch_size):
    """At each place of a text the choice among four tokens, and the text's own continuations, by
    the logits that transformers computed (meta.json); to the digits that the harness prints."""
    stored = np.load(OFFLINE / "reference.npz", allow_pickle=False)
    ids, logits = stored["ids_4"].tolist(), stored["logits_4"].astype(np.float64)
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    choices = [[ids[at], *rng.integers(0, 384, 3).tolist()] for at in range(1, len(ids))]
    pairs = [(None, ids[:at], [c]) for at, row in enumerate(choices, 1) for c in row]
    expected = [logs[at - 1, c] for at, row in enumerate(choices, 1) for c in row]
    for begin in (1, 8, 30):
        pairs.append((None, ids[:begin], ids[begin:]))
        expected.append(sum(logs[at - 1, ids[at]] for at in range(begin, len(ids))))
    lm = adapter(OFFLINE, kv_dtype="f32", threads=1, batch_size=batch_size)
    with lm.model:
        found = lm._loglikelihood_tokens(pairs, **QUIET)
        assert [f"{score:.4f}" for score, _ in found] == [f"{score:.4f}" for score in expected]
        greedy = [logs[len(context) - 1].argmax() == c[0] for _, context, c in pairs[:-3]]
        assert [is_greedy for _, is_greedy in found[:-3]] == greedy


def test_rolling_scores_each_token_once(adapter, model):
    text = "And it came to pass, that he went out from thence unto the city."
    ids, prefix = model.tokenizer.encode(text, add_bos=False), model.tokenizer.encode("")
    whole = model.loglikelihood(prefix, ids)[0]
    assert adapter(model).loglikelihood_rolling(asked((text,), ("",), (text,)), **QUIET) == [
        whole, 0, whole]  # fmt: skip
    with bitnet.load(threads=1, context=8) as short:
        (found,) = adapter(short).loglikelihood_rolling(asked((text,)), **QUIET)
        everything, expected = [*prefix, *ids], 0.0
        for begin in range(1, len(everything), 8):
            end = min(begin + 8, len(everything))
            context = everything[max(0, end - 9) : begin]
            expected += short.loglikelihood(context, everything[begin:end])[0]
    assert len(ids) > 16 and found == pytest.approx(expected, abs=1e-9)


def test_a_context_that_is_too_long_loses_its_beginning(adapter, caplog):
    with bitnet.load(threads=1, context=8) as short, caplog.at_level(logging.WARNING, "bitnet"):
        lm, ids = adapter(short), list(range(20, 40))
        (found,) = lm._loglikelihood_tokens([(None, ids, [5, 6])], **QUIET)
        assert found == short.loglikelihood(ids[-7:], [5, 6])
        assert "20 tokens is cut to its last 7" in caplog.text
        with pytest.raises(bitnet.ContextFull):
            lm._loglikelihood_tokens([(None, ids, ids)], **QUIET)
        text = "And it came to pass in those days, that he went out"
        (written,) = lm.generate_until(asked((text, {"max_gen_toks": 3})), **QUIET)
        kept = short.tokenizer.encode(text)[-5:]
        assert written == short.generate(kept, max_tokens=3, temperature=0).text
        with pytest.raises(ValueError, match="max_gen_toks: 8 "):
            lm.generate_until(asked((text, {"max_gen_toks": 8})), **QUIET)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_texts_end_at_their_strings(adapter, batch_size):
    contexts = ["And so", "It came to pass", "In the beginning", "And David said"]
    settings = [
        {"until": ["."], "max_gen_toks": 20},
        {"until": " the", "max_gen_toks": 20, "do_sample": False, "temperature": 0.7},
        {"until": None, "max_new_tokens": 3},
        {"until": ["\n", ""], "max_gen_toks": 5, "repetition_penalty": 1.5},
    ]
    alike = [
        {"stop": ["."], "max_tokens": 20},
        {"stop": " the", "max_tokens": 20},
        {"max_tokens": 3},
        {"stop": "\n", "max_tokens": 5, "repetition_penalty": 1.5},
    ]
    lm = adapter(threads=1, batch_size=batch_size)
    with lm.model as model:
        kept = []
        lm.cache_hook = SimpleNamespace(add_partial=lambda *entry: kept.append(entry))
        found = lm.generate_until(asked(*zip(contexts, settings, strict=True)), **QUIET)
        expected = [
            model.generate(context, temperature=0, **options).text
            for context, options in zip(contexts, alike, strict=True)
        ]
        assert found == expected and not found[1].endswith(" the")
        assert [entry[2] for entry in kept] == found
        assert kept[0][:2] == ("generate_until", (contexts[0], settings[0]))


def test_sampled_texts_differ_and_come_again(adapter, model):
    request = ("And so", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12})
    first, second = (adapter(model, seed=5).generate_until(asked(request, request), **QUIET)
                     for _ in range(2))  # fmt: skip
    assert first == second and first[0] != first[1]
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_tokens": 12}
    assert first[1] == model.generate("And so", seed=6, **options).text


def test_likelihoods_reach_the_cache_of_the_harness(lm, monkeypatch):
    kept = []
    hook = SimpleNamespace(add_partial=lambda *entry: kept.append(entry))
    monkeypatch.setattr(lm, "cache_hook", hook)
    scores = lm.loglikelihood(asked(*PAIRS), **QUIET)
    totals = lm.loglikelihood_rolling(asked(("And so",)), **QUIET)
    assert sorted(kept) == sorted(
        [("loglikelihood", pair, score) for pair, score in zip(PAIRS, scores, strict=True)]
        + [("loglikelihood_rolling", ("And so",), totals[0])]
    )


def test_progress_is_shown(lm, capsys):
    lm._loglikelihood_tokens([(None, [5, i], [7]) for i in range(70)])
    lm.generate_until(asked(("And", {"max_gen_toks": 2}), ("So", {"max_gen_toks": 2})))
    shown = capsys.readouterr().err
    assert "70/70" in shown and "generate_until: 100%" in shown and "2/2" in shown


def test_chat_templates(lm, model):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is it?"}]
    text = lm.apply_chat_template(talk)
    assert lm.tok_encode(text) == model.encode_chat(talk)
    begun = [*talk, {"role": "assistant", "content": "It is"}]
    text = lm.apply_chat_template(begun, add_generation_prompt=False)
    assert text.endswith("It is")
    expected = model.encode_chat(begun, add_generation_prompt=False, continue_final_message=True)
    assert lm.tok_encode(text) == expected
    assert lm.chat_template(True) == model.tokenizer.chat_template.source
    assert lm.chat_template(False) is None and "/" not in lm.tokenizer_name


def test_tokens(adapter, lm, model):
    ids = model.tokenizer.encode("And so")
    assert lm.tok_encode("And so") == ids and lm.tok_decode(ids) == "And so"
    assert adapter(model, add_bos_token=False).tok_encode("And so") == ids[1:]
    assert lm.tok_encode("And so", add_special_tokens=False) == ids[1:]
    assert (lm.prefix_token_id, lm.eot_token_id) == (ids[0], model.tokenizer.eos_ids[0])
    assert lm.max_length == model.context


def test_the_token_in_front_of_a_text_without_context(adapter):
    """As the harness's hf model has it: what prompts begin with, else the end token."""
    for name, expected in (("hf_llama_bitlinear", 397), ("groups/mlx_2bit_g128", 351)):
        with bitnet.load(DATA / name, threads=1) as model:
            ids = model.tokenizer.encode("And so", add_bos=False)
            for lm, prefix in ((adapter(model), expected), (adapter(model, prefix_token_id=7), 7)):
                assert lm.prefix_token_id == prefix
                (found,) = lm.loglikelihood(asked(("", "And so")), **QUIET)
                assert found == model.loglikelihood([prefix], ids)


def test_what_makes_no_sense_is_refused(adapter, lm, model):
    for arguments, message in [
        ({"batch_size": 0}, "batch_size: 0"),
        ({"batch_size": "many"}, "batch_size: 'many'"),
        ({"device": "cuda"}, "device: 'cuda' .cpu"),
        ({"max_gen_toks": 0}, "max_gen_toks: 0"),
        ({"prefix_token_id": -1}, "prefix_token_id: -1"),
        ({"pretrained": model, "context": 8}, "context: of a model that is loaded"),
        ({"pretrained": DATA / "hf_embedding_qwen3"}, "an embedding model"),
    ]:
        with pytest.raises(ValueError, match=message):
            adapter(**arguments)
    with pytest.raises(ValueError, match="generation_kwargs: 'num_beams'"):
        lm.generate_until(asked(("And", {"num_beams": 2})), **QUIET)
    made = adapter.create_from_arg_obj(
        {"pretrained": model}, {"batch_size": "auto:4", "max_batch_size": 2, "device": "cpu"}
    )
    assert made.batch_size == 2


def test_without_the_harness_the_import_says_what_to_install():
    code = "import sys; sys.modules['lm_eval'] = None; import bitnet.lm_eval"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode and "pip install 'bitnet-engine[eval]'" in done.stderr


def test_the_example_has_questions_whose_answers_stand_at_both_places():
    verses = runpy.run_path(str(ROOT / "examples" / "lm_eval" / "verses.py"))["VERSES"]
    assert len(verses) == 8 and all(right != wrong for _, right, wrong in verses)


@needs_harness
def test_the_example_task_through_the_command(tmp_path):
    """Its accuracy is that of Model.loglikelihood."""
    command = [
        sys.executable, "-m", "bitnet.lm_eval", "--model", "bitnet", "--tasks", "verses",
        "--include_path", ROOT / "examples" / "lm_eval", "--model_args", "threads=1",
        "--batch_size", "auto", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    verses = runpy.run_path(str(ROOT / "examples" / "lm_eval" / "verses.py"))["VERSES"]
    with bitnet.load(threads=1) as model:
        right = [
            model.loglikelihood(begins, ends)[0] > model.loglikelihood(begins, other)[0]
            for begins, ends, other in verses
        ]
    (row,) = [line for line in done.stdout.splitlines() if "|acc " in line]
    assert 0 < np.mean(right) < 1 and f"|{np.mean(right):.4g}|" in row.replace(" ", "")
