"""Calls into the `tokenizers` library, which panics on some files: a panic is no Exception."""

from ...errors import FormatError


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
        return encoder.encode(text, add_special_tokens=False).ids

    return lambda text: call(path, "tokenizer", "one that can split this text", find, text)
