"""Two ways to say in what order BPE joins pieces: a rank a pair, or a score a piece.

By score every pair whose joint piece exists may be joined, the leftmost first among equal scores.
Ranks can say that only where pieces of one score are runs of one character ("----", spaces): the
longest left part first comes to the same. So it is with Llama-2's runs of spaces.
"""

from ...errors import FormatError
from .vocabulary import NORMAL


def merges_of(pieces):
    """[(left, right)] by rank for Pieces; FormatError for equal scores that ranks cannot say."""
    ids = pieces.of(NORMAL)
    costs = dict(zip(pieces.texts, (-pieces.scores).tolist(), strict=True))
    joins = [(costs[a + b], -len(a), -len(b), a, b) for a, b in _splits(ids)]
    joins.sort()
    products = {}
    for cost, _, _, a, b in joins:
        other = products.setdefault(cost, a + b)
        if other != a + b and not (_is_run(other) and _is_run(a + b)):
            where = f"scores of {other!r} and {a + b!r}"
            raise FormatError(pieces.path, where, -cost, "different; merges cannot express it")
    return [(a, b) for *_, a, b in joins]


def scores_of(ids, merges):
    """({piece: score}, whether the scores alone say what the merges say).

    ids: {text: id} of the pieces that may be joined. merges: [(left, right)] by rank. A piece that
    no merge leads to has the lowest score.
    """
    last_rank = {pair: rank for rank, pair in enumerate(merges)}  # of a pair given twice
    ranked = sorted(last_rank, key=last_rank.get)
    ranks = {(a, b): i for i, (a, b) in enumerate(ranked) if a in ids and b in ids and a + b in ids}
    first, last = {}, {}
    for (a, b), rank in ranks.items():
        first.setdefault(a + b, rank)
        last[a + b] = rank
    groups, end = [], -1  # pieces whose ranks interlace have one score
    for text, rank in first.items():
        if rank > end:
            groups.append([])
        groups[-1].append(text)
        end = max(end, last[text])
    scores = {text: -float(i) for i, group in enumerate(groups) for text in group}
    same = ranks.keys() == set(_splits(ids)) and _are_leftmost(groups, ranks)
    return {text: scores.get(text, -float(len(groups))) for text in ids}, same


def _splits(ids):
    """Yield (left, right) for every way to divide a piece into two pieces."""
    for text in ids:
        for i in range(1, len(text)):
            if text[:i] in ids and text[i:] in ids:
                yield text[:i], text[i:]


def _is_run(text):
    return text == text[0] * len(text)


def _are_leftmost(groups, ranks):
    """Whether the ranks join the leftmost pair first in every group of more than one piece.

    So they do for runs of one character whose pairs with the longest left part come first.
    """
    group_of = {text: i for i, group in enumerate(groups) if len(group) > 1 for text in group}
    lengths = {}
    for a, b in ranks:
        if a + b in group_of:
            lengths.setdefault((group_of[a + b], a[0]), []).append((-len(a), -len(b)))
    return all(map(_is_run, group_of)) and all(own == sorted(own) for own in lengths.values())
