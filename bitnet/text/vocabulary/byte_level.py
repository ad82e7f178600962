"""Byte-level BPE, GPT-2's: how each kind cuts text into words, and the encoder of the library."""

from functools import partial

from ...errors import FormatError
from .library import call

MERGES_KEY = "tokenizer.ggml.merges"

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN_35 = QWEN_2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)  # marks belong to the words of the letters they are on
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT_2, r"[0-9][0-9][0-9]")  # applied one after the other

# tokenizer.ggml.pre -> (how text is split into words, whether a word that is itself in the
# vocabulary is taken whole, whether bos goes in front where the file does not say)
PRE_TOKENIZERS = {
    "llama-bpe": ((LLAMA_3,), True, True),
    "llama3": ((LLAMA_3,), True, True),
    "llama-v3": ((LLAMA_3,), True, True),
    "falcon3": ((LLAMA_3,), True, True),
    "falcon_e": ((LLAMA_3,), True, True),
    "falcon-e": ((LLAMA_3,), True, True),
    "smaug-bpe": ((LLAMA_3,), False, False),
    "dbrx": ((LLAMA_3,), False, False),
    "qwen2": ((QWEN_2,), False, False),
    "qwen35": ((QWEN_35,), False, False),
    "deepseek-r1-qwen": ((QWEN_2,), False, False),
    "gpt-2": ((GPT_2,), False, False),
    "falcon": (FALCON, False, False),
}


def name_of(words, ignore_merges):
    """The tokenizer.ggml.pre of a way to split, None if it has none."""
    way = tuple(words), ignore_merges
    return next((name for name, entry in PRE_TOKENIZERS.items() if entry[:2] == way), None)


def encoder(path, ids, merges, words, ignore_merges, normalizer=None):
    """A tokenizers.Tokenizer: 0.3 s for a vocabulary of 128,256 and 280,147 merges.

    ids: {token: id}. merges: "a b" in order of rank. words: regular expressions that split a text
    one after the other. normalizer: None or "NFC". FormatError for merges that are not two tokens.
    """
    import tokenizers  # 40 ms
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pairs = split_merges(path, merges)
    make = partial(models.BPE, vocab=ids, merges=pairs, ignore_merges=ignore_merges)
    made = tokenizers.Tokenizer(call(path, MERGES_KEY, "pairs of tokens", make))
    splits = [pre_tokenizers.Split(tokenizers.Regex(word), "isolated") for word in words]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    made.decoder = decoders.ByteLevel()
    if normalizer == "NFC":
        made.normalizer = normalizers.NFC()
    return made


def split_merges(path, merges):
    """[(a, b)] of "a b"; FormatError for one that is not two tokens."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for i, pair in enumerate(pairs):
        if len(pair) != 2:
            raise FormatError(path, f"{MERGES_KEY}[{i}]", " ".join(pair), "two tokens")
    return pairs
