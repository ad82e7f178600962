"""Perplexity and lm-evaluation-harness beside transformers; saved logits beside llama.cpp.

Needs transformers, torch and lm_eval, and of llama.cpp a llama-perplexity that LLAMA_PERPLEXITY
names: `.ci/long eval` installs the former. transformers computes in float32. Where activations are
rounded to 8 bits, two engines whose floats differ in the last bit now and then round one another
way: a perplexity is then known to three digits, also between float32 and float64 of transformers.
"""

import json
import math
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from support.paths import DATA, ROOT
from support.small_files import safetensors

import bitnet
from bitnet.cli import main

TEXT = DATA / "heldout.txt"
GROUPS = DATA / "groups"
LLAMA_PERPLEXITY = os.environ.get("LLAMA_PERPLEXITY")
ROLLING = """task: ruth
custom_dataset: !function ruth.dataset
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
metadata: {version: 1.0}
"""
DATASET = """
def dataset(**metadata):
    from datasets import Dataset
    return {"test": Dataset.from_list([{"text": text} for text in %r])}
"""


# transformers -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """The folder of a model whose weights are floats, which transformers can read: that of MLX."""
    pytest.importorskip("transformers")
    load_file = pytest.importorskip("safetensors.numpy").load_file
    source, path = GROUPS / "mlx_2bit_g128", tmp_path_factory.mktemp("models") / "floats"
    shutil.copytree(source, path)
    config = json.loads((path / "config.json").read_text())
    for name in ("quantization", "quantization_config"):
        config.pop(name, None)
    (path / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    given, tensors = load_file(source / "model.safetensors"), {}
    for name, data in given.items():
        base = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if data.dtype == np.uint32:  # 16 codes of 2 bits, the first lowest
            codes = (data[:, :, None] >> np.arange(0, 32, 2, dtype=np.uint32)) & 3
            scales, biases = (
                np.repeat(given[f"{base}.{part}"].astype(np.float32), 128, axis=1)
                for part in ("scales", "biases")
            )
            data = codes.reshape(len(data), -1) * scales + biases
        data = data.astype("<f4")
        tensors[name] = "F32", data.shape, data.tobytes()
    (path / "model.safetensors").write_bytes(safetensors(tensors))
    return path


@pytest.fixture(scope="module", params=["floats", "hf_llama_bitlinear", "hf_bitnet_online"])
def folder(request):
    if request.param == "floats":
        return request.getfixturevalue("floats")
    return DATA / request.param


@pytest.fixture(scope="module")
def theirs(folder):
    """(the tokenizer, the model in float32) of transformers."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = hf.AutoModelForCausalLM.from_pretrained(folder, **options)
    return hf.AutoTokenizer.from_pretrained(folder), model.eval()


def digits(folder):
    """How far a perplexity may be from theirs, of 1."""
    return 1e-5 if folder.name == "floats" else 1e-3


@pytest.mark.parametrize("stride", [64, 128])
def test_perplexity_by_the_recipe_of_transformers(folder, theirs, stride):
    """The loop of their page "Perplexity of fixed-length models", 128 tokens a window."""
    import torch

    tokenizer, model = theirs
    text = TEXT.read_text().removesuffix("\n")
    ids = tokenizer(text, return_tensors="pt").input_ids
    n_ids, nll_sum, n_tokens, prev_end = ids.shape[1], 0.0, 0, 0
    for begin in range(0, n_ids, stride):
        end = min(begin + 128, n_ids)
        part = ids[:, begin:end]
        target = part.clone()
        target[:, : -(end - prev_end)] = -100
        with torch.no_grad():
            loss = model(part, labels=target).loss.item()
        n = int((target != -100).sum()) - 1
        nll_sum, n_tokens, prev_end = nll_sum + loss * n, n_tokens + n, end
        if end == n_ids:
            break
    expected = math.exp(nll_sum / n_tokens)
    with bitnet.load(folder, threads=1, kv_dtype="f32") as ours:
        found = bitnet.perplexity(ours, text, context=128, stride=stride, recipe="huggingface")
    assert found.perplexity == pytest.approx(expected, rel=digits(folder))


def test_tables_of_the_harness(folder, tmp_path):
    """Of `--model bitnet` and `--model hf`: the printed digits, and each likelihood behind them."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from bitnet.lm_eval import BitnetLM

    text = TEXT.read_text()
    (tmp_path / "ruth.yaml").write_text(ROLLING)
    (tmp_path / "ruth.py").write_text(DATASET % [text[:700], text[700:1200]])
    examples = str(ROOT / "examples" / "lm_eval")
    manager = TaskManager(include_path=[examples, str(tmp_path)])
    # 8 bits of activations leave three digits of a perplexity: more than those are printed
    tasks = ["verses", "ruth"] if folder.name == "floats" else ["verses"]

    def run(model):
        options = {"task_manager": manager, "log_samples": True, "bootstrap_iters": 0}
        found = lm_eval.simple_evaluate(model=model, tasks=tasks, **options)
        samples = [one["filtered_resps"] for task in tasks for one in found["samples"][task]]
        numbers = [answer[0] if isinstance(answer, list | tuple) else answer
                   for answers in samples for answer in answers]  # fmt: skip
        return make_table(found), numbers, found["samples"]["verses"]

    options = {"dtype": "float32", "device": "cpu", "add_bos_token": True}
    expected, their_numbers, _ = run(
        HFLM(pretrained=str(folder), attn_implementation="eager", **options)
    )
    ours = BitnetLM(folder, kv_dtype="f32", threads=1)
    with ours.model as model:
        table, numbers, samples = run(ours)
        assert table == expected
        assert len(numbers) == len(their_numbers) >= 16
        np.testing.assert_allclose(numbers, their_numbers, rtol=digits(folder), atol=1e-3)
        for sample in samples:  # and of Model.loglikelihood to the last bit
            for request, (score, is_greedy) in zip(
                sample["arguments"], sample["filtered_resps"], strict=True
            ):
                assert model.loglikelihood(*request) == (score, is_greedy)


# llama.cpp ----------------------------------------------------------------------------------------
needs_llama_cpp = pytest.mark.skipif(
    LLAMA_PERPLEXITY is None, reason="LLAMA_PERPLEXITY names no llama-perplexity"
)


def llama_perplexity(model, *arguments, last="PPL = "):
    """What it writes, with what it ends with."""
    command = [LLAMA_PERPLEXITY, "-m", model, "-c", 128, "-b", 128, "-t", 1, *arguments]
    for _ in range(20):  # its log may lose the last lines as it ends
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        if last in done.stdout + done.stderr:
            return done.stdout + done.stderr
    return pytest.fail(f"no {last!r} in its output")


def statistics(output):
    """The figures of llama-perplexity --kl-divergence, by name."""
    found = dict(re.findall(r"^([\w.%()Δ ]+?) *: +(-?[\d.]+)", output, re.M))
    return {name.strip(): float(value) for name, value in found.items()}


@needs_llama_cpp
@pytest.mark.parametrize("name", ["gguf_q2_0_g64_full", "gguf_tq2_0_llama", "gguf_q2_0_yarn"])
def test_perplexity_of_one_file(name):
    """Of theirs, which rounds activations to 8 bits a block, ours is within that rounding."""
    path = next((GROUPS / name).glob("*.gguf"))
    found = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", llama_perplexity(path, "-f", TEXT))
    with bitnet.load(path, threads=1) as model:
        text = TEXT.read_text().removesuffix("\n")
        ours = bitnet.perplexity(model, text, context=128)
    assert ours.perplexity == pytest.approx(float(found[1]), rel=5e-3)
    assert ours.error == pytest.approx(float(found[2]), rel=2e-2)


@needs_llama_cpp
@pytest.mark.parametrize("writer", ["ours", "theirs"])
def test_saved_logits_in_both_directions(writer, tmp_path, capsys):
    """What llama-perplexity says of our file, or of its own, is what `bitnet compare` says of it
    and of a file that llama-perplexity has saved of the second model. In that file the second
    model's log probabilities are rounded, to 2.4e-4 where 16 nats lie between them: their mean is
    the same in all digits, single positions (three of 1,512) are not, nor a perplexity with tokens
    that are cut off there."""
    path = next((GROUPS / "gguf_q2_0_g64_full").glob("*.gguf"))
    base, second = tmp_path / "base", tmp_path / "second"
    if writer == "ours":
        command = ["perplexity", str(path), str(TEXT), "--context", "128", "--threads", "1"]
        assert main([*command, "--save-logits", str(base)]) == 0
        cache = []
    else:
        llama_perplexity(path, "-f", TEXT, "--kl-divergence-base", base)
        cache = ["-ctk", "q8_0", "-ctv", "q8_0"]
    told = llama_perplexity(
        path, *cache, "--kl-divergence-base", base, "--kl-divergence", last="Same top p:"
    )
    theirs = statistics(told)
    llama_perplexity(path, "-f", TEXT, *cache, "--kl-divergence-base", second)
    capsys.readouterr()
    assert main(["compare", str(base), str(second), "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    quantiles = ours["kl_quantiles"]
    same = {
        "Mean    KLD": ours["kl"], "Median  KLD": quantiles["median"],
        "90.0%   KLD": quantiles["p90"], "99.0%   KLD": quantiles["p99"],
        "99.9%   KLD": quantiles["p999"], "Maximum KLD": ours["kl_max"],
    }  # fmt: skip
    assert {name: theirs[name] for name in same} == pytest.approx(same, rel=2e-3, abs=2e-6)
    assert theirs["Mean    KLD"] == pytest.approx(ours["kl"], abs=2e-6)
    assert theirs["Mean PPL(base)"] == pytest.approx(ours["a"]["perplexity"], rel=1e-6)
    assert theirs["Mean PPL(Q)"] == pytest.approx(ours["b"]["perplexity"], rel=5e-3)
    assert theirs["RMS Δp"] == pytest.approx(100 * ours["rms_dp"], abs=1e-3)
    assert theirs["Same top p"] == pytest.approx(100 * ours["same_top"], abs=0.2)
