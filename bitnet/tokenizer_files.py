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


# GGUF ---------------------------------------------------------------------------------------------


def to_gguf(source, config):
    """The tokenizer.* keys of a source.TokenizerSource for gguf.write; without one, the end tokens.

    FormatError for a tokenizer that the keys cannot describe.
    """
    if source.metadata is not None:
        return _repaired(dict(source.metadata))
    if source.tokenizer_json is not None:
        keys = _of_json(source, config)
    elif source.sentencepiece is not None:
        keys = _of_model(source, config)
    else:
        keys = _ids(config.bos_token_id, next(iter(config.eos_token_ids), None))
    template = from_hf.template_of(source.tokenizer_config, source.path)
    if template is not None:
        keys["tokenizer.chat_template"] = template
    keys = _repaired(keys)
    others = [i for i in config.eos_token_ids if i != keys.get("tokenizer.ggml.eos_token_id")]
    if others:
        keys.setdefault("tokenizer.ggml.eot_token_id", others[0])
    return keys


def _repaired(keys):
    """The keys with the chat template that the model was trained on, and its end of a turn."""
    template = keys.get("tokenizer.chat_template")
    if isinstance(template, str):
        keys["tokenizer.chat_template"] = ChatTemplate(template).source
    tokens, name = keys.get("tokenizer.ggml.tokens", ()), "tokenizer.ggml.eot_token_id"
    if name not in keys:
        ends = [text for text in TURN_ENDS if text in tokens]
        if ends:
            keys[name] = list(tokens).index(ends[0])
    return keys


def _keys(model, texts, kinds, config, prefix, suffix, path):
    """What both kinds of vocabulary have. texts: {id: token}; missing ids are unused."""
    for token_id in texts:
        if token_id >= config.vocab_size:
            raise FormatError(path, "token id", token_id, f"below vocab_size {config.vocab_size}")
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(config.vocab_size)]
    bos, eos = config.bos_token_id, next(iter(suffix or config.eos_token_ids), None)
    if prefix not in ([], [bos]) or suffix not in ([], [eos]):
        raise FormatError(path, "post_processor", f"{prefix}, {suffix}", "at most bos and eos")
    unknown = [i for i in texts if kinds[i] == UNKNOWN]
    return _ids(bos, eos, next(iter(unknown), None)) | {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_bos_token": bool(prefix),
        "tokenizer.ggml.add_eos_token": bool(suffix),
    }


def _ids(bos, eos, unknown=None):
    ids = {"bos": bos, "eos": eos, "unknown": unknown}
    return {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None}


def _kinds(config, texts, special, added):
    """int32 (vocab_size,). special, added: {text: id}."""
    kinds = np.full(config.vocab_size, UNUSED, np.int32)
    for ids, kind in ((texts, NORMAL), (added.values(), USER_DEFINED), (special.values(), CONTROL)):
        kinds[[i for i in ids if i < config.vocab_size]] = kind
    return kinds


def _of_json(source, config):
    path = source.tokenizer_json
    encoder = from_hf.load(path)
    special = from_hf.special_tokens(encoder, config)
    prefix, suffix = from_hf.around(encoder, source.tokenizer_config, config, path)
    texts = {i: text for text, i in encoder.get_vocab(with_added_tokens=True).items()}
    texts = {i: text for i, text in texts.items() if i < config.vocab_size}
    listed = encoder.get_added_tokens_decoder().items()
    added = {token.content: i for i, token in listed if token.content not in special}
    kinds = _kinds(config, texts, special, added)
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    if model.get("type", "BPE") != "BPE":
        raise FormatError(path, "model type", model["type"], "BPE, for a GGUF")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if from_hf.is_byte_level(from_hf.decoder_parts(encoder), path):
        keys = _keys("gpt2", texts, kinds, config, prefix, suffix, path)
        return keys | _byte_level_keys(encoder, model, merges, path)
    for i, text in texts.items():
        if kinds[i] == NORMAL and byte_of(text) is not None:
            kinds[i] = BYTE
        elif text == model.get("unk_token"):
            kinds[i] = UNKNOWN
    keys = _keys("llama", texts, kinds, config, prefix, suffix, path)
    ids = {text: i for i, text in texts.items() if kinds[i] == NORMAL}
    ranked = merge_scores.scores_of(ids, [tuple(merge.split(" ")) for merge in merges])
    scores = np.zeros(config.vocab_size, np.float32)
    scores[list(ids.values())] = [ranked[text] for text in ids]
    return keys | {
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": from_hf.drops_space(from_hf.decoder_parts(encoder)),
        # for our reader, which prefers them: scores cannot say all that merges can
        "tokenizer.ggml.merges": merges,
    }


def _byte_level_keys(encoder, model, merges, path):
    words, ignore_merges = _words(encoder, path), bool(model.get("ignore_merges"))
    pre = byte_level.name_of(words, ignore_merges)
    if pre is None:
        limit = f"one of {', '.join(byte_level.PRE_TOKENIZERS)}, for a GGUF"
        raise FormatError(path, "pre_tokenizer", " then ".join(words), limit)
    keys = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": merges}
    if encoder.normalizer is not None:
        kind = json.loads(encoder.normalizer.__getstate__()).get("type")
        if kind != "NFC":
            raise FormatError(path, "normalizer", kind, "NFC or none, for a GGUF")
        keys[from_gguf.NORMALIZER] = kind
    return keys


def _words(encoder, path):
    """The regular expressions by which a byte-level tokenizer splits a text, one after another."""
    state = from_hf.pre_tokenizer_state(encoder)
    words = []
    for part in state.get("pretokenizers", [state]):
        if part.get("type") == "ByteLevel":
            if part.get("add_prefix_space"):
                raise FormatError(path, "add_prefix_space", True, "false, for a GGUF")
            words += [byte_level.GPT_2] if part.get("use_regex", True) else []
        elif part.get("type") == "Split" and "Regex" in part["pattern"]:
            words.append(part["pattern"]["Regex"])
        else:
            words.append(str(part.get("type")))
    return words


def _of_model(source, config):
    path = source.sentencepiece
    found, _ = from_hf.read_model(path, source.tokenizer_config, config)
    if found.unigram:
        raise FormatError(path, "model type", "unigram", "BPE, for a GGUF")
    if found.removes_spaces:
        raise FormatError(path, "remove_extra_whitespaces", True, "false, for a GGUF")
    prefix, suffix = from_hf.stated_borders(source.tokenizer_config, config, True)
    n_more = config.vocab_size - len(found.texts)
    kinds = np.append(found.kinds, np.full(n_more, UNUSED)).astype(np.int32)
    texts = dict(enumerate(found.texts))
    return _keys("llama", texts, kinds, config, prefix, suffix, path) | {
        "tokenizer.ggml.scores": np.append(found.scores, np.zeros(n_more)).astype(np.float32),
        "tokenizer.ggml.add_space_prefix": found.adds_space,
    }


# Hugging Face -------------------------------------------------------------------------------------


def to_hf(source, config):
    """{file name: bytes} of tokenizer.json (or tokenizer.model) and tokenizer_config.json.

    From a folder they are its own files; FormatError for a GGUF's that they cannot describe.
    """
    if source.metadata is None:
        files = [path for path in (source.tokenizer_json, source.sentencepiece) if path]
        made = {path.name: path.read_bytes() for path in files}
        return made | {"tokenizer_config.json": _json(source.tokenizer_config)} if made else {}
    if "tokenizer.ggml.model" not in source.metadata:
        return {}
    metadata = _repaired(dict(source.metadata))
    fields = from_gguf.Fields(source.path, metadata)
    tokens = fields.strings("tokens")
    is_pieces = fields.get("model", str) == "llama"
    build = _build_pieces if is_pieces else _build_byte_level
    encoder, kinds = build(fields, tokens, config)
    special = [tokens[i] for i in np.flatnonzero(np.isin(kinds, (CONTROL, UNKNOWN)))]
    from_gguf.add_tokens(encoder, special, special=True)
    from_gguf.add_tokens(encoder, [tokens[i] for i in np.flatnonzero(kinds == USER_DEFINED)])
    default = is_pieces or byte_level.PRE_TOKENIZERS[fields.get("pre", str)][2]
    prefix, suffix = from_gguf.around(fields, config, default)
    _put_around(encoder, tokens, prefix, suffix)
    eos = next(iter(suffix or config.eos_token_ids), None)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None if config.bos_token_id is None else tokens[config.bos_token_id],
        "eos_token": None if eos is None else tokens[eos],
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    return {
        "tokenizer.json": encoder.to_str().encode(),
        "tokenizer_config.json": _json(settings),
    }


def _json(value):
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _build_byte_level(fields, tokens, config):
    merges = fields.strings("merges") or []
    kinds = from_gguf.byte_level_kinds(fields, tokens, merges, config)
    ids = {text: i for i, text in enumerate(tokens) if kinds[i] != UNUSED}
    split = from_gguf.byte_level_split(fields)
    return byte_level.encoder(fields.path, ids, merges, *split), kinds


def _build_pieces(fields, tokens, config):
    """As transformers converts Llama's tokenizers."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    found = from_gguf.read_pieces(fields, tokens, config)
    merges = merge_scores.merges_of(found) if found.merges is None else found.merges
    ids = {text: i for i, text in enumerate(tokens) if found.kinds[i] != UNUSED}
    unknown = next(iter(found.of(UNKNOWN)), None)
    model = models.BPE(
        vocab=ids,
        merges=[tuple(merge) for merge in merges],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    encoder = Tokenizer(model)
    spaces = [normalizers.Prepend(SPACE)] if found.adds_space else []
    encoder.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if found.adds_space else []
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    encoder.decoder = decoders.Sequence(steps)
    return encoder, found.kinds


def _put_around(encoder, tokens, prefix, suffix):
    if prefix or suffix:
        from tokenizers import processors

        around = [[tokens[i] for i in ids] for ids in (prefix, suffix)]
        encoder.post_processor = processors.TemplateProcessing(
            single=[*around[0], "$A", *around[1]],
            special_tokens=[(tokens[i], i) for i in dict.fromkeys(prefix + suffix)],
        )
