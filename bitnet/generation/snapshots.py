"""Where a state that cannot go back is kept, so that a later prompt can go on from there.

A conversation is rendered anew for every turn, and agrees with the turn before up to where the
last message ended: what follows, the beginning of a reply and the reply, may be shown otherwise
then, as by templates that leave earlier reasoning out.
"""

from collections.abc import Sequence

MAX_SNAPSHOTS = 1000  # of a slot
EVERY = 4096  # tokens of a prompt: what is read again where nothing else agrees


def snapshot_places(tokens: Sequence[int], reply_opener: int | None) -> tuple[int, ...]:
    """The lengths at which a prompt's state is kept, ascending.

    reply_opener: the token that the beginning of a reply begins with, see Tokenizer.reply_opener.
    """
    places = set(range(EVERY, len(tokens), EVERY))
    for at in range(len(tokens) - 1, 0, -1):
        if tokens[at] == reply_opener:
            places.add(at)
            break
    return tuple(sorted(places))
