"""A small model drafts for a large one: tokens a second beside plain decoding, in turn.

The weights are random, so how often drafts are right is imposed here; all that costs time is done
as ever: the small model's steps, its choice of a token, the large model's step over several rows.
"""

import random

import numpy as np
import pytest
from support import synthetic

import bitnet
from bitnet.generation.request import Request
from bitnet.runtime import cpu

N_PROMPT, N_DECODED, ROUNDS = 16, 96, 3
AGREEMENTS = (0.0, 0.5, 0.7, 0.9)
LARGE, SMALL = "bonsai-8b", "bonsai-1.7b"
# Scales of groups, as Bonsai has them; the same shapes with BitNet's graph and a scale a tensor.
KINDS = {
    "groups-int16": ("", "int16"), "groups-int8": ("", "int8"), "tensor": ("-i2s", None)
}  # fmt: skip


@pytest.fixture(scope="module")
def written(request, tmp_path_factory, large_files):
    """A function: the path of a file of a shape, which is written if it is not there."""
    kept = request.config.getoption("--bonsai-files")
    folder = kept or tmp_path_factory.mktemp("bonsai")

    def path_of(name, suffix):
        path, shape = folder / f"{name}{suffix}.gguf", synthetic.SHAPES[name]
        if not path.exists():
            graph = () if suffix else ("qwen3", "PQ2_0", name not in synthetic.UNTIED)
            named = kept is not None
            large_files.write(path, shape, 0, *graph, option="--bonsai-files FOLDER", named=named)
        return path

    return path_of


@pytest.fixture(scope="module", params=KINDS)
def model(request, written):
    suffix, activations = KINDS[request.param]
    large, small = (written(name, suffix) for name in (LARGE, SMALL))
    limits = {"threads": min(2, len(cpu.affinity())), "context": 512, "prefix_cache": False}
    with bitnet.load(large, speculative=small, activations=activations, **limits) as model:
        yield model


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_drafts(model, agreement, sampled, timed, figures, monkeypatch):
    """A token of a draft is right with the probability that is imposed."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, model.config.vocab_size, N_PROMPT).tolist()
    ends = dict.fromkeys(model.tokenizer.eos_ids, -float("inf"))
    options = {"max_tokens": N_DECODED, "logit_bias": ends, "seed": 1}
    options["temperature"] = 0.8 if sampled else 0.0
    plain = model.generate(prompt, speculative="off", **options)
    text, chosen, done = prompt + plain.token_ids, Request.guess, []

    def guess(self, logits, draft):
        chosen(self, logits, draft)
        at = len(self.tokens) + len(draft)
        right = text[at] if at < len(text) else 0
        return right if random.Random(at).random() < agreement else (right + 1) % len(logits)

    monkeypatch.setattr(Request, "guess", guess)
    _, without = timed(
        lambda: done.append(model.generate(prompt, **options)),
        lambda: model.generate(prompt, speculative="off", **options).generation_tps,
        rounds=ROUNDS,
    )
    assert all(c.token_ids == plain.token_ids for c in done)
    rates = [c.generation_tps for c in done[1:]]
    figures(
        tokens_s=np.median(rates),
        plain_tokens_s=without,
        gain=np.median(rates) / without,
        drafted=sum(c.drafted_tokens for c in done[1:]) / ROUNDS,
        accepted=sum(c.accepted_tokens for c in done[1:]) / ROUNDS,
    )
