"""A model's tokenizer for other containers: GGUF metadata, and files of a Hugging Face folder.

Text has the same ids afterwards; what a container cannot say is refused by name.
"""

import json
import logging

import numpy as np

from .chat import ChatTemplate
from .formats import FormatError
from .vocabulary import byte_level, from_gguf, from_hf, merge_scores
from .vocabulary.vocabulary import (
    BYTE,
    CONTROL,
    END_TOKENS,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    byte_of,
)

log = logging.getLogger("bitnet")

# What says <|eot_id|> in other vocabularies. Other engines stop at these and at the end of a text.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
PAD_SCORE = -1e9  # of an id that no token has; nothing is joined to it


# GGUF ---------------------------------------------------------------------------------------------


def to_gguf(source, config):
    """The tokenizer.* keys of a source.TokenizerSource for gguf.write; without one, the end tokens.

    They are read back once. FormatError for a tokenizer that they cannot describe.
    """
    if source.metadata is not None:
        keys = dict(source.metadata)
    elif source.tokenizer_json is not None:
        keys = _of_json(source, config)
    elif source.sentencepiece is not None:
        keys = _of_model(source, config)
    else:
        keys = {}
    if "tokenizer.ggml.model" not in keys:
        return keys | _end_keys(keys, config.eos_token_ids, {}, source.path) | _bos_key(config)
    _repair(keys, config, source.path)
    found = from_gguf.from_metadata(source.path, keys, config)
    return keys | _end_keys(keys, found.eos_ids, found.special, source.path)


def _bos_key(config):
    bos = config.bos_token_id
    return {} if bos is None else {"tokenizer.ggml.bos_token_id": bos}


def _end_keys(keys, eos_ids, special, path):
    """The ids that end a text, of which other engines and this one know some by their text."""
    texts = {token_id: text for text, token_id in special.items()}
    eos = keys.get("tokenizer.ggml.eos_token_id", next(iter(eos_ids), None))
    rest = sorted((i for i in eos_ids if i != eos), key=lambda i: texts.get(i) not in TURN_ENDS)
    stated = [i for i in rest if texts.get(i) in TURN_ENDS or texts.get(i) not in END_TOKENS]
    if len(stated) > 2 and any(texts.get(i) not in END_TOKENS for i in stated[2:]):
        raise FormatError(path, "eos_token_id", [eos, *stated], "at most three, for a GGUF")
    ends = {"eos": eos} | dict(zip(("eot", "eom"), stated, strict=False))
    return {f"tokenizer.ggml.{name}_token_id": i for name, i in ends.items() if i is not None}


def _repair(keys, config, path):
    """Change keys: the template the model was trained on, a token for every id, one name a kind."""
    template = keys.get("tokenizer.chat_template")
    if isinstance(template, str):
        keys["tokenizer.chat_template"] = ChatTemplate(template).source
    if keys.get("tokenizer.ggml.pre") in byte_level.PRE_TOKENIZERS:
        words, ignore_merges, adds_bos = byte_level.PRE_TOKENIZERS[keys["tokenizer.ggml.pre"]]
        keys["tokenizer.ggml.pre"] = byte_level.name_of(words, ignore_merges)
        keys.setdefault("tokenizer.ggml.add_bos_token", adds_bos)
    tokens = keys["tokenizer.ggml.tokens"]
    n, size = len(tokens), config.vocab_size
    if n > size:
        raise FormatError(path, "tokens", n, f"at most vocab_size {size}")
    keys["tokenizer.ggml.tokens"] = [*tokens, *(f"[PAD{i}]" for i in range(n, size))]
    for name, dtype, more in (("token_type", np.int32, UNUSED), ("scores", np.float32, PAD_SCORE)):
        key = f"tokenizer.ggml.{name}"
        if key in keys or name == "token_type":
            values = np.asarray(keys.get(key, np.full(n, NORMAL)), dtype)
            keys[key] = np.append(values, np.full(size - n, more, dtype))


def _keys(model, texts, kinds, around, source, config):
    """What both kinds of vocabulary have. texts: {id: token}; missing ids are unused."""
    path, settings = source.path, source.tokenizer_config
    for token_id in texts:
        if token_id >= config.vocab_size:
            raise FormatError(path, "token id", token_id, f"below vocab_size {config.vocab_size}")
    prefix, suffix = around
    if len(prefix) > 1 or len(suffix) > 1:
        raise FormatError(path, "post_processor", f"{prefix}, {suffix}", "at most bos and eos")
    if prefix and prefix != [config.bos_token_id]:
        raise FormatError(path, "post_processor", prefix, f"bos_token_id {config.bos_token_id}")
    pad = settings.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    ids = {
        "bos": config.bos_token_id,
        "eos": next(iter(suffix or config.eos_token_ids), None),
        "unknown": next((i for i in texts if kinds[i] == UNKNOWN), None),
        "padding": next((i for i, text in texts.items() if text == pad), None),
    }
    keys = {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None}
    template = from_hf.template_of(settings, path)
    if template is not None:
        keys["tokenizer.chat_template"] = template
    return keys | {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": [texts.get(i, f"[PAD{i}]") for i in range(len(kinds))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_bos_token": bool(prefix),
        "tokenizer.ggml.add_eos_token": bool(suffix),
    }


def _of_model(source, config):
    path, settings = source.sentencepiece, source.tokenizer_config
    found, added = from_hf.read_model(path, settings, config)
    if found.unigram:
        raise FormatError(path, "model_type", "unigram", "BPE, for a GGUF")
    if not found.byte_fallback:
        raise FormatError(path, "byte_fallback", False, "true, for a GGUF")
    if found.removes_spaces:
        raise FormatError(path, "remove_extra_whitespaces", True, "false, for a GGUF")
    if found.adds_space:
        own = found.of(USER_DEFINED).keys() - added.keys()
        if own:
            limit = "none where a space goes in front, for a GGUF"
            raise FormatError(path, "user-defined piece", min(own), limit)
        if settings.get("legacy") is False:
            raise FormatError(source.path, "legacy", False, "true, for a GGUF")
    texts = dict(enumerate(found.texts))
    for text, i in found.of(USER_DEFINED).items():
        texts[i] = text.replace(SPACE, " ")  # they are looked for in the text as it is
    around = from_hf.stated_borders(settings, config, True)
    return _keys("llama", texts, found.kinds, around, source, config) | {
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": found.scores,
        "tokenizer.ggml.add_space_prefix": found.adds_space,
    }


def _of_json(source, config):
    path = source.tokenizer_json
    encoder = from_hf.load(path)
    special = from_hf.special_tokens(encoder, config)
    around = from_hf.around(encoder, source.tokenizer_config, config, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    model = data["model"]
    for name, limits in {
        "type": ("BPE", None), "dropout": (None, 0), "continuing_subword_prefix": (None, ""),
        "end_of_word_suffix": (None, ""),
    }.items():  # fmt: skip
        if model.get(name) not in limits:
            raise FormatError(path, f"model {name}", model[name], f"{limits[0]}, for a GGUF")
    parts = from_hf.decoder_parts(encoder)
    is_pieces = not from_hf.is_byte_level(parts, path)
    texts = {i: text for text, i in model["vocab"].items()}
    kinds = {i: NORMAL for i in texts}
    for token in data["added_tokens"]:
        i, text = encoder.token_to_id(token["content"]), token["content"]
        if text in special:
            texts[i], kinds[i] = text, CONTROL
        elif token["special"] and not text.isspace() and i >= config.vocab_size:
            texts.pop(i, None)  # there is no row for it, and no text spells it
        elif not (is_pieces and SPACE in text and kinds.get(i) == NORMAL):  # merges lead to it
            _check_added(token, data["normalizer"], path)
            texts[i], kinds[i] = text, USER_DEFINED
    if is_pieces:
        for i, text in texts.items():
            if text == model.get("unk_token"):
                kinds[i] = UNKNOWN
            elif kinds[i] == NORMAL and byte_of(text) is not None:
                kinds[i] = BYTE
    types = np.full(max(texts, default=-1) + 1 if len(texts) < 1 << 24 else 0, UNUSED, np.int32)
    return texts, kinds, types, around
