"""Requests to a scheduler over the mock transformer."""

from support.mock_model import END, VOCAB, ByteTokenizer, MockTransformer

from bitnet.generation.detokenizer import TextAssembler
from bitnet.generation.request import Request
from bitnet.generation.sampling import Sampling, make_sampler
from bitnet.generation.scheduler import Engine
from bitnet.generation.stopping import Limits

PROMPTS = ["a", "a longer prompt, of some fifty bytes or so, all told", "x" * 33, "mid-sized", "b"]


def request(prompt="x", max_tokens=20, seed=1, **sampling):
    ids = ByteTokenizer().encode(prompt) if isinstance(prompt, str) else prompt
    sampler = make_sampler(Sampling(**{"temperature": 1.0, "seed": seed, **sampling}), VOCAB)
    text = TextAssembler(ByteTokenizer().stream())
    return Request(ids, sampler, Limits(max_tokens, eos_ids=frozenset((END,))), text)


def plain(transformer, **options):
    """An engine that keeps no caches of finished sequences; those are tested in test_prefixes."""
    return Engine(transformer, prefix_cache=False, **options)


def alone(**keywords):
    return plain(MockTransformer()).complete([request(**keywords)])[0]
