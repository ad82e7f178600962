"""Vocabularies as files hold them, made into one encoder of the `tokenizers` library.

Two kinds of source: tokenizer.json of a Hugging Face folder, and the metadata of a GGUF file. Here
every special token in a text is text; the tokenizer looks for special tokens itself.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .formats import FormatError

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# tokenizer.ggml.pre -> (how text is split into words, whether a word that is itself in the
# vocabulary is taken whole, whether bos goes in front where the file does not say)
PRE_TOKENIZERS = {
    "llama-bpe": (LLAMA_3, True, True),
    "llama3": (LLAMA_3, True, True),
    "llama-v3": (LLAMA_3, True, True),
    "falcon3": (LLAMA_3, True, True),
    "falcon_e": (LLAMA_3, True, True),
    "falcon-e": (LLAMA_3, True, True),
    "qwen2": (QWEN_2, False, False),
    "gpt-2": (GPT_2, False, False),
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type

# Tokens that end a turn or a text in the published vocabularies. Files often name only one of them.
END_TOKENS = (
    "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>", "<|eom_id|>",
    "<end_of_turn>", "</s>",
)  # fmt: skip

# A normalizer may make text shorter (NFC joins a letter and its accents): never by more than this.
MAX_SHRINKING = 8


def _bytes_alphabet():
    """GPT-2's characters for the 256 bytes: printable Latin-1 stands for itself."""
    same = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in same]
    return {chr(byte): byte for byte in same} | {chr(256 + i): b for i, b in enumerate(rest)}


BYTE_OF = _bytes_alphabet()


@dataclass
class Vocabulary:
    """The tokens of a model. encoder: tokenizers.Tokenizer. special: {text: id}.

    token: id -> text as stored, None if there is none. prefix: ids in front of every prompt.
    byte_level: GPT-2's alphabet stands for bytes; otherwise U+2581 is a space and <0x0A> a byte.
    """

    encoder: object
    token: Callable[[int], str | None]
    special: dict[str, int]
    prefix: list[int]
    byte_level: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    chat_template: str | None

    @cached_property
    def most_text_a_token(self):
        """Characters that one token stands for at most: a bound without encoding a long text."""
        longest = max(map(len, self.encoder.get_vocab()), default=1)
        return longest * (1 if self.encoder.normalizer is None else MAX_SHRINKING)

    def is_special(self, token_id):
        return token_id in self._special_ids

    @cached_property
    def _special_ids(self):
        return frozenset(self.special.values())


def from_source(source, config):
    """The vocabulary of a weights.TokenizerSource, None where it holds none.

    config: the ModelConfig, for the ids of the begin and end tokens. FormatError for a vocabulary
    that is damaged or of a kind this version does not read.
    """
    if source.tokenizer_json is not None:
        return _from_json(source.tokenizer_json, source.tokenizer_config, config)
    if source.metadata and "tokenizer.ggml.model" in source.metadata:
        return _from_metadata(source.path, source.metadata, config)
    return None


def _end_ids(special, config):
    more = [special[text] for text in END_TOKENS if text in special]
    return tuple(dict.fromkeys([*config.eos_token_ids, *more]))


# tokenizer.json -----------------------------------------------------------------------------------


def _from_json(path, config_json, config):
    import tokenizers  # 40 ms

    try:
        encoder = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise FormatError(path, "tokenizer", str(error), "a tokenizer.json") from None
    encoder.no_truncation()
    encoder.no_padding()
    added = encoder.get_added_tokens_decoder()
    borders = (config.bos_token_id, *config.eos_token_ids)
    special = {t.content: i for i, t in added.items() if t.special or i in borders}
    encoder.add_special_tokens(list(special))  # those that were added as ordinary tokens
    encoder.encode_special_tokens = True
    return Vocabulary(
        encoder=encoder,
        token=encoder.id_to_token,
        special=special,
        prefix=_prefix(encoder, config_json, config.bos_token_id),
        byte_level=_is_byte_level(encoder, path),
        bos_id=config.bos_token_id,
        eos_ids=_end_ids(special, config),
        chat_template=_template_of(config_json, path),
    )


def _is_byte_level(encoder, path):
    state = {} if encoder.decoder is None else json.loads(encoder.decoder.__getstate__())
    kinds = [part.get("type") for part in state.get("decoders", [state])]
    for kind, byte_level in (("ByteLevel", True), ("ByteFallback", False)):
        if kind in kinds:
            return byte_level
    raise FormatError(path, "decoder", kinds, "ByteLevel or ByteFallback")


def _prefix(encoder, config_json, bos_id):
    """What the post-processor puts in front of a text; without one, what tokenizer_config says."""
    bare, full = (encoder.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    for i in range(len(full) - len(bare) + 1):
        if full[i : i + len(bare)] == bare and i:
            return full[:i]
    return [bos_id] if config_json.get("add_bos_token") is True and bos_id is not None else []


def _template_of(config_json, path):
    template = config_json.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise FormatError(path.parent, "chat_template", type(template).__name__, "a string")
    return template


# GGUF ---------------------------------------------------------------------------------------------


def _from_metadata(path, metadata, config):
    def get(name, default=None):
        return metadata.get(f"tokenizer.ggml.{name}", default)

    def refuse(name, value, limit):
        raise FormatError(path, f"tokenizer.ggml.{name}", value, limit)

    if get("model") != "gpt2":
        refuse("model", get("model"), "gpt2, byte-level BPE")
    if get("pre") not in PRE_TOKENIZERS:
        refuse("pre", get("pre"), f"one of {', '.join(PRE_TOKENIZERS)}")
    split, ignore_merges, adds_bos = PRE_TOKENIZERS[get("pre")]
    tokens, merges = list(get("tokens", ())), get("merges")
    if merges is None or not tokens:
        refuse("tokens" if merges is not None else "merges", "missing", "required")
    kinds = np.array(get("token_type", np.full(len(tokens), NORMAL)))
    for i in (config.bos_token_id, *config.eos_token_ids):  # whatever the file calls them
        kinds[[i] if i is not None and i < len(tokens) else []] = CONTROL
    special = {tokens[i]: int(i) for i in np.flatnonzero(kinds == CONTROL)}
    added = [tokens[i] for i in np.flatnonzero(kinds == USER_DEFINED)]
    adds_bos = get("add_bos_token", adds_bos) and config.bos_token_id is not None
    encoder = _encoder(path, tokens, merges, special, added, split, ignore_merges)
    texts = {token_id: text for text, token_id in special.items()}
    return Vocabulary(
        encoder=encoder,
        token=lambda token_id: texts.get(token_id) or encoder.id_to_token(token_id),
        special=special,
        prefix=[config.bos_token_id] if adds_bos else [],
        byte_level=True,
        bos_id=config.bos_token_id,
        eos_ids=_end_ids(special, config),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _encoder(path, tokens, merges, special, added, split, ignore_merges):
    """The library's BPE over these tokens: 0.3 s for a vocabulary of 128,256 and 280,147 merges."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    # A space cannot occur in the alphabet of bytes, so no text spells a special token's entry.
    ids = {" " + text if text in special else text: i for i, text in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(i for i, text in enumerate(tokens) if ids[text] != i)
        raise FormatError(path, f"tokenizer.ggml.tokens[{twice}]", tokens[twice], "once only")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for i, pair in enumerate(pairs):
        if len(pair) != 2:
            raise FormatError(path, f"tokenizer.ggml.merges[{i}]", " ".join(pair), "two tokens")
    try:
        bpe = models.BPE(vocab=ids, merges=pairs, ignore_merges=ignore_merges)
    except Exception as error:
        raise FormatError(path, "tokenizer.ggml.merges", str(error), "pairs of tokens") from None
    encoder = tokenizers.Tokenizer(bpe)
    encoder.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in added])
    words = pre_tokenizers.Split(tokenizers.Regex(split), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    encoder.decoder = decoders.ByteLevel()
    return encoder
