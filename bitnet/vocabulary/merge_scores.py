"""Two ways to say in what order BPE joins pieces: a rank a pair, or a score a piece.

By score every pair whose joint piece exists may be joined, the leftmost first among equal scores.
Ranks can say that only where pieces of one score are runs of one character ("----", spaces):
the longest left part first comes to the same. So it is with Llama-2's runs of spaces.
"""

from ..formats import FormatError
from .vocabulary import NORMAL


def merges_of(pieces):
    """[(left, right)] by rank for Pieces; FormatError for equal scores that ranks cannot say."""
    ids = pieces.of(NORMAL)
    costs = dict(zip(pieces.texts, (-pieces.scores).tolist(), strict=True))
    found = [(costs[a + b], -len(a), -len(b), a, b) for a, b in _splits(ids)]
    found.sort()
    products = {}
    for cost, _, _, a, b in found:
        other = products.setdefault(cost, a + b)
        if other != a + b and not (_is_run(other) and _is_run(a + b)):
            where = f"scores of {other!r} and {a + b!r}"
            raise FormatError(pieces.path, where, -cost, "different; merges cannot express it")
    return [(a, b) for *_, a, b in found]


def scores_of(ids, merges):
    """{piece: score} by the first merge that leads to each; the lowest where none does.

    ids: {text: id} of the pieces that may be joined. What ranks say beyond that is lost.
    """
    first = {}
    for rank, (a, b) in enumerate(merges):
        first.setdefault(a + b, rank)
    return {text: -float(first.get(text, len(merges))) for text in ids}


def _splits(ids):
    """Yield (left, right) for every way to divide a piece into two pieces."""
    for text in ids:
        for i in range(1, len(text)):
            if text[:i] in ids and text[i:] in ids:
                yield text[:i], text[i:]


def _is_run(text):
    return text == text[0] * len(text)
