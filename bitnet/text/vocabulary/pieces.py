"""SentencePiece's two kinds of vocabulary, encoded as its library does: BPE by score, and unigram.

BPE joins, time after time, the two neighbours whose joint piece has the highest score, the leftmost
such pair among equals. The merges of the `tokenizers` library cannot say "leftmost among equals",
and Llama-2 has 16 pieces of one score; so this is done here, word by word and remembered: 10 MB/s
of English, 0.3 MB/s of text without a space.
"""

import heapq
import math
import re
import struct
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ...errors import FormatError
from ..special_tokens import SpecialTokens
from .byte_level import MERGES_KEY
from .library import call
from .vocabulary import BYTE, NORMAL, SPACE, UNKNOWN, USER_DEFINED

_FLOAT = struct.Struct("f")
UNKNOWN_COST = 10  # what an unknown character scores less than the lowest score of a piece
MAX_WORDS, MAX_WORD_LENGTH = 1 << 14, 48  # words remembered, characters of one: at most 10 MB


@dataclass
class Pieces:
    """What a file says. texts, scores (float32) and types (NORMAL, UNKNOWN, ...): one a token.

    unigram: otherwise BPE. byte_fallback: what no piece spells becomes bytes, otherwise unknown.
    adds_space: a space is put in front of a text. removes_spaces: those at its ends are taken away,
    and one remains of several. spaced_first: as the library does it, before user-defined pieces are
    looked for; otherwise, as in a GGUF file, for each part of the text that they leave.
    merges: in the order of their rank, where scores alone do not say it.
    """

    path: Path
    texts: list[str]
    scores: np.ndarray
    types: np.ndarray
    unigram: bool = False
    byte_fallback: bool = True
    adds_space: bool = True
    removes_spaces: bool = False
    spaced_first: bool = False
    merges: list[tuple[str, str]] | None = None

    def of(self, *types):
        """{text: id} of the tokens of these types."""
        return {self.texts[i]: i for i in np.flatnonzero(np.isin(self.types, types)).tolist()}


class Encoder:
    """Text to ids. added: {text: id} of tokens that stand for themselves and divide the text.

    A space is put in front of each part of a divided text. FormatError for pieces without what
    every text needs: 256 bytes, or a token for the unknown.
    """

    def __init__(self, pieces, added):
        self._pieces = pieces
        own = {text: i for text, i in pieces.of(USER_DEFINED).items() if text not in added}
        if not pieces.spaced_first:
            added, own = added | own, {}
        keeps = pieces.removes_spaces
        self._added = added if keeps else {t.replace(" ", SPACE): i for t, i in added.items()}
        self._own = own
        self._find_added, self._find_own = SpecialTokens(self._added), SpecialTokens(self._own)
        self._bytes = _byte_ids(pieces) if pieces.byte_fallback else None
        self._unknown = _unknown_id(pieces)
        if pieces.unigram:
            self._encode = Unigram(pieces)
        else:
            self._encode = BPE(pieces) if pieces.merges is None else _by_merges(pieces)

    def __call__(self, text, with_space=True):
        """The ids; with_space: a space goes in front where the vocabulary wants it."""
        if not self._pieces.removes_spaces:
            text = text.replace(" ", SPACE)
        ids = []
        for part, is_added in self._find_added.split(text):
            if is_added:
                ids.append(self._added[part])
            else:
                ids += self._own_and_rest(self._normal(part, with_space))
        return ids

    def longest(self):
        """Characters that one token stands for at most."""
        if self._bytes is None or self._pieces.removes_spaces:
            return math.inf
        return max(map(len, self._pieces.texts), default=1)

    def _normal(self, text, with_space):
        with_space = with_space and self._pieces.adds_space
        if not self._pieces.removes_spaces:
            return SPACE + text if with_space else text
        text = re.sub(" +", SPACE, text.strip(" "))
        return (SPACE + text if with_space and text else text).rstrip(SPACE)

    def _own_and_rest(self, text):
        ids = []
        for part, is_own in self._find_own.split(text):
            ids += [self._own[part]] if is_own else self._spelled(self._encode(part))
        return ids

    def _spelled(self, encoded):
        """Ids and, among them, the texts that no piece spells."""
        ids = []
        for item in encoded:
            if isinstance(item, int):
                ids.append(item)
            elif self._bytes is not None:
                ids += [self._bytes[byte] for byte in item.encode()]
            elif not ids or ids[-1] != self._unknown:  # one for all that follow each other
                ids.append(self._unknown)
        return ids


def _byte_ids(pieces):
    ids, names = pieces.of(BYTE) or pieces.of(NORMAL), [f"<0x{byte:02X}>" for byte in range(256)]
    for name in names:
        if name not in ids:
            raise FormatError(pieces.path, f"token {name}", "missing", "all 256 bytes")
    return [ids[name] for name in names]


def _unknown_id(pieces):
    unknown = pieces.of(UNKNOWN)
    if not unknown and not pieces.byte_fallback:
        raise FormatError(pieces.path, "unknown token", "missing", "required without byte tokens")
    return next(iter(unknown.values()), None)


class BPE:
    """Text with U+2581 to a list of ids, and of characters that no piece spells."""

    def __init__(self, pieces):
        ids, costs = pieces.of(NORMAL), (-pieces.scores).tolist()
        self._join = partial(_join, ids, {text: costs[i] for text, i in ids.items()})
        self._remembered = lru_cache(MAX_WORDS)(self._join)
        # A word may be cut off before a space unless a piece spans the two characters there.
        pairs = re.compile(f"(.)(?={SPACE})", re.DOTALL)
        spanned = {SPACE}.union(*(pairs.findall(text) for text in ids if SPACE in text[1:]))
        spans = "".join(map(re.escape, sorted(spanned)))
        self._cut = re.compile(rf"(?<=[^{spans}])(?={SPACE})")

    def __call__(self, text):
        encoded = []
        for word in self._cut.split(text):
            encoded += (self._remembered if len(word) <= MAX_WORD_LENGTH else self._join)(word)
        return encoded


def _join(ids, costs, text):
    """costs: {piece: -score}. Every pair of neighbours waits in a heap as (cost, where, length)."""
    parts, n = list(text), len(text)
    after, before = list(range(1, n + 1)), list(range(-1, n - 1))
    heap = [(costs[text[i : i + 2]], i, 2) for i in range(n - 1) if text[i : i + 2] in costs]
    heapq.heapify(heap)
    while heap:
        _, i, length = heapq.heappop(heap)
        j = after[i]
        if j == n or not parts[i] or len(parts[i]) + len(parts[j]) != length:
            continue  # one of the two has been joined to another since
        parts[i], parts[j] = parts[i] + parts[j], ""
        after[i] = j = after[j]
        if j < n:
            before[j] = i
        for left, right in ((before[i], i), (i, j)):
            if left >= 0 and right < n and (joint := parts[left] + parts[right]) in costs:
                heapq.heappush(heap, (costs[joint], left, len(joint)))
    return [ids.get(part, part) for part in parts if part]


class Unigram:
    """The same, by the division into pieces whose scores have the highest sum.

    Sums are rounded to float32 step by step and the first of equal ones stays, as in the library,
    whose answer depends on it: "---" is "--", "-" or the other way round.
    """

    def __init__(self, pieces):
        self._ids, scores = pieces.of(NORMAL), pieces.scores.tolist()
        self._scores = {text: scores[i] for text, i in self._ids.items()}
        self._unknown = _rounded(min(self._scores.values(), default=0.0) - UNKNOWN_COST)
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text):
        n, scores = len(text), self._scores
        # of the best division of the text up to each place: its score, where its last piece begins
        best, begins = [0.0] + [-math.inf] * n, [0] * (n + 1)
        for i in range(n):
            for j in range(i + 1, min(n, i + self._longest) + 1):
                score = scores.get(text[i:j], self._unknown if j == i + 1 else None)
                if score is None:
                    continue
                total = _rounded(best[i] + score)
                if total > best[j]:
                    best[j], begins[j] = total, i
        encoded, end = [], n
        while end:
            part = text[begins[end] : end]
            encoded.append(self._ids.get(part, part))
            end = begins[end]
        return encoded[::-1]


def _rounded(value):
    return _FLOAT.unpack(_FLOAT.pack(value))[0]


def _by_merges(pieces):
    """The same, by the merges of a tokenizer.json and the library that it is for."""
    from tokenizers import Tokenizer, models

    types = pieces.types.tolist()
    # No text spells what begins with a space: that is U+2581 in a text that comes here.
    names = [
        t if type_ == NORMAL else f" {t}" for t, type_ in zip(pieces.texts, types, strict=True)
    ]
    unknown = len(names)
    ids = {name: i for i, name in enumerate([*names, " "])}
    make = partial(models.BPE, vocab=ids, merges=pieces.merges, unk_token=" ")
    find = Tokenizer(call(pieces.path, MERGES_KEY, "pairs of tokens", make)).encode

    def encode(text):
        encoding = find(text)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[begin:end] if i == unknown else i for i, (begin, end) in spans]

    return encode
