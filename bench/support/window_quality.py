"""What a moving window costs against a fresh forward pass over the same sinks and latest tokens.

python bench/support/window_quality.py TEXT [MODEL]: the text goes through one session whose window
moves; every position beyond the ring is compared with a pass over nothing but what it sees. The two
differ, since keys and values of the latest tokens were made while tokens given up were in sight.
"""

import argparse
import math
from pathlib import Path

import numpy as np

import bitnet
from bitnet.generation.stopping import SINKS
from bitnet.runtime.kv_cache import PAGE


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compare(model, ids, n_positions=200):
    """A dict of figures: bits a token of both over all positions beyond the ring, and at
    n_positions of them the agreement of the likeliest token, Kullback-Leibler divergence in nats,
    and the largest difference of log-probabilities above 1e-4."""
    capacity, nats = model.context, np.zeros(2)
    positions = range(capacity, len(ids) - 1)
    sampled = set(np.random.default_rng(0).choice(positions, n_positions, replace=False).tolist())
    agree, divergences, largest = 0, [], 0.0
    with model.session(context_end="window") as session:
        session.feed(ids[:capacity])
        begin = capacity
        while begin < len(ids) - 1:
            end = min(begin + PAGE - begin % PAGE, len(ids) - 1)
            start = (-(-end // PAGE) - -(-capacity // PAGE) + 1) * PAGE
            seen = [*ids[:SINKS], *ids[start:end]]
            fresh = log_softmax(model.logits(seen)[-(end - begin) :])
            for p, expected in zip(range(begin, end), fresh, strict=True):
                windowed = log_softmax(session.decode(ids[p]))
                nats -= windowed[ids[p + 1]], expected[ids[p + 1]]
                if p in sampled:
                    agree += windowed.argmax() == expected.argmax()
                    divergences.append(np.exp(expected) @ (expected - windowed))
                    likely = expected > math.log(1e-4)
                    largest = max(largest, np.abs(expected - windowed)[likely].max())
            begin = end
    bits = nats / math.log(2) / len(positions)
    return {
        "windowed": bits[0],
        "fresh": bits[1],
        "top1": agree / n_positions,
        "kl_mean": np.mean(divergences),
        "kl_max": max(divergences),
        "largest": largest,
        "n_tokens": len(positions),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("model", nargs="?", help="default: the bundled one")
    parser.add_argument("--context", type=int, default=300)
    parser.add_argument("--kv-dtype", default="f16")
    args = parser.parse_args()
    with bitnet.load(args.model, context=args.context, kv_dtype=args.kv_dtype) as model:
        ids = model.tokenizer.encode(args.text.read_text("utf-8"))
        for name, value in compare(model, ids).items():
            print(f"{name:>9}  {value:.5f}")


if __name__ == "__main__":
    main()
