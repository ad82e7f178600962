"""Which continuation a model finds likeliest: python examples/choose.py [MODEL]"""

import sys

import bitnet

CONTEXT = "And the king said unto"
CHOICES = (" him,", " the telephone,", " purple of,")

with bitnet.load(*sys.argv[1:2]) as model:
    for choice in CHOICES:
        log_probability, is_greedy = model.loglikelihood(CONTEXT, choice)
        note = "  (what it would say)" if is_greedy else ""
        print(f"{log_probability:8.2f}  {CONTEXT}{choice}{note}")
