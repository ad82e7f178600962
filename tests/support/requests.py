"""Requests to a scheduler over the mock transformer."""

from support.mock_model import END, VOCAB, ByteTokenizer, MockTransformer

from bitnet.generation.detokenizer import Detokenizer
from bitnet.generation.request import Request
from bitnet.generation.sampling import Sampling, make_sampler
from bitnet.generation.scheduler import Scheduler
from bitnet.generation.stopping import StopConditions

PROMPTS = ["a", "a longer prompt, of some fifty bytes or so, all told", "x" * 33, "mid-sized", "b"]


def request(prompt="x", max_tokens=20, seed=1, options=None, **sampling):
    """options: further ones of Request."""
    ids = ByteTokenizer().encode(prompt) if isinstance(prompt, str) else prompt
    sampler = make_sampler(Sampling(**{"temperature": 1.0, "seed": seed, **sampling}), VOCAB)
    detokenizer = Detokenizer(ByteTokenizer().stream())
    stopping = StopConditions(max_tokens, eos_ids=frozenset((END,)))
    return Request(ids, sampler, stopping, detokenizer, **(options or {}))


def plain(transformer, **options):
    """A Scheduler that keeps no states of finished sequences: see test_prefix_cache."""
    return Scheduler(transformer, **options)


def alone(**keywords):
    return plain(MockTransformer()).complete([request(**keywords)])[0]
