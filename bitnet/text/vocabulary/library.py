"""Calls into the `tokenizers` library, which panics on some files: a panic is no Exception."""

import os

from ...errors import FormatError

# Only its batches give up the interpreter lock, which a text of 1 MB holds for 0.5 s. They start
# threads of their own unless this variable, the library's own, says "false": the server sets it.
NO_THREADS = "TOKENIZERS_PARALLELISM"
LONG = 1 << 16  # characters: 0.03 s


def call(path, field, limit, function, *args):
    """What function(*args) returns; FormatError for whatever the library has against it."""
    try:
        return function(*args)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise FormatError(path, field, str(error), limit) from None


def find_ids(path, encoder):
    """text -> ids, all special tokens in it being text; of a tokenizers.Tokenizer.

    FormatError, once the text is there, for a file that splits words by an expression that never
    comes to an end.
    """

    def find(text):
        if len(text) > LONG and os.environ.get(NO_THREADS) == "false":
            return encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return encoder.encode(text, add_special_tokens=False).ids

    return lambda text: call(path, "tokenizer", "one that can split this text", find, text)
