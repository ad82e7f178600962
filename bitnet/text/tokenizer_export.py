"""A model's tokenizer for other containers: GGUF metadata, and files of a Hugging Face folder.

Text has the same ids afterwards; what a container cannot say is refused by name.
"""

import json
import logging
from functools import partial

import numpy as np

from ..errors import FormatError
from .chat_template import ChatTemplate
from .vocabulary import byte_level, from_gguf, from_hf, merge_scores
from .vocabulary.library import call
from .vocabulary.vocabulary import (
    BYTE,
    BYTE_LEVEL_MODEL,
    CONTROL,
    END_TOKENS,
    NORMAL,
    PIECES_MODEL,
    SPACE,
    TEMPLATE_KEY,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    byte_of,
)

log = logging.getLogger("bitnet")

# Tokens that end a turn, <|eot_id|> by other names. Other engines stop at them and at the end of
# a text.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
# How a tokenizer.json of SentencePiece's kind makes spaces visible.
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}
PAD_SCORE = -1e9  # score of an id without a token: so low that nothing is joined to it


# GGUF ---------------------------------------------------------------------------------------------


def to_gguf(source, config):
    """The tokenizer.* keys of a TokenizerSource for gguf.write; without one, the end tokens.

    They are read back once. FormatError for a tokenizer that they cannot describe.
    """
    if source.metadata is not None:
        keys = _metadata(source, config)
    elif source.tokenizer_json is not None:
        keys = _of_json(source, config)
    elif source.sentencepiece is not None:
        keys = _of_model(source, config)
    else:
        keys = {}
    if "tokenizer.ggml.model" not in keys:
        return keys | _end_keys(keys, config.eos_token_ids, {}, source.path) | _bos_key(config)
    _repair(keys, config, source.path)
    vocabulary = from_gguf.from_metadata(source.path, keys, config)
    return keys | _end_keys(keys, vocabulary.eos_ids, vocabulary.special, source.path)


def _metadata(source, config):
    """The keys of a GGUF, which were read before they are changed."""
    if "tokenizer.ggml.model" in source.metadata:
        from_gguf.from_metadata(source.path, source.metadata, config)
    return dict(source.metadata)


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
    """Change keys: the chat template the model was trained on in place of a wrong one, one name for
    each kind of pre-tokenizer, and a token for every id up to vocab_size."""
    template = keys.get(TEMPLATE_KEY)
    if isinstance(template, str):
        keys[TEMPLATE_KEY] = ChatTemplate(template).source
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


def _keys(model, texts, types, affixes, source, config):
    """The keys that both kinds of vocabulary have.

    texts, types: {id: token}, {id: type}. affixes: the prefix and suffix of Vocabulary.
    """
    path, settings = source.path, source.tokenizer_config
    n = max(texts, default=-1) + 1
    if n > config.vocab_size:
        raise FormatError(path, "token id", n - 1, f"below vocab_size {config.vocab_size}")
    prefix, suffix = affixes
    if prefix not in ([], [config.bos_token_id]) or len(suffix) > 1:
        limit = "bos_token_id in front and one behind, for a GGUF"
        raise FormatError(path, "post_processor", f"{prefix}, {suffix}", limit)
    pad = settings.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    ids = {
        "bos": config.bos_token_id,
        "eos": next(iter(suffix or config.eos_token_ids), None),
        "unknown": next((i for i in texts if types[i] == UNKNOWN), None),
        "padding": next((i for i, text in texts.items() if text == pad), None),
    }
    keys = {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None}
    template = from_hf.template_of(settings, path)
    if template is not None:
        keys[TEMPLATE_KEY] = template
    return keys | {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": [texts.get(i, f"[PAD{i}]") for i in range(n)],
        "tokenizer.ggml.token_type": np.array([types.get(i, UNUSED) for i in range(n)], np.int32),
        "tokenizer.ggml.add_bos_token": bool(prefix),
        "tokenizer.ggml.add_eos_token": bool(suffix),
    }


def _of_model(source, config):
    path, settings = source.sentencepiece, source.tokenizer_config
    pieces, added = from_hf.read_model(path, settings, config)
    user_defined = pieces.of(USER_DEFINED).keys() - added.keys()
    for field, value, is_fine, required in (
        ("model_type", "unigram", not pieces.unigram, "BPE"),
        ("byte_fallback", "false", pieces.byte_fallback, "true"),
        ("remove_extra_whitespaces", "true", not pieces.removes_spaces, "false"),
        (
            "user-defined pieces",
            len(user_defined),
            not (user_defined and pieces.adds_space),
            "add_dummy_prefix false",
        ),
        ("legacy", settings.get("legacy"), settings.get("legacy") is not False, "true"),
    ):
        if not is_fine:
            raise FormatError(path, field, value, f"{required}, for a GGUF")
    texts, types = dict(enumerate(pieces.texts)), dict(enumerate(pieces.types.tolist()))
    for text, i in pieces.of(USER_DEFINED).items():
        texts[i] = text.replace(SPACE, " ")  # they are looked for in the text as it is
    affixes = from_hf.stated_bos_eos(settings, config, True)
    stated = from_hf.stated_strips(settings)
    strips = {i: stated[text] for i, text in texts.items() if text in stated}
    keys = _keys(PIECES_MODEL, texts, types, affixes, source, config)
    return (
        keys
        | _strip_keys(strips, types, path)
        | {
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": pieces.scores,
            "tokenizer.ggml.add_space_prefix": pieces.adds_space,
        }
    )


def _strip_keys(strips, types, path):
    """Our keys of special tokens that take white space. strips: {id: (left, right)}."""
    keys = {}
    for key, side in zip(from_gguf.STRIP_KEYS, (0, 1), strict=True):
        ids = [i for i, sides in sorted(strips.items()) if sides[side] and types.get(i) == CONTROL]
        if ids:
            keys[key] = np.array(ids, np.int32)
            log.warning("%s: tokens that take white space; other engines will not know", path)
    return keys


def _of_json(source, config):
    path = source.tokenizer_json
    encoder = from_hf.load(path)
    affixes = from_hf.affixes(encoder, source.tokenizer_config, config, path)
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    _check_model(model, path)
    is_pieces = not from_hf.is_byte_level(from_hf.steps_of(encoder.decoder), path)
    texts, types = _json_tokens(model, encoder, is_pieces, path, config)
    added = encoder.get_added_tokens_decoder()
    strips = {i: (token.lstrip, token.rstrip) for i, token in added.items()}
    name = PIECES_MODEL if is_pieces else BYTE_LEVEL_MODEL
    keys = _keys(name, texts, types, affixes, source, config) | _strip_keys(strips, types, path)
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    if not is_pieces:
        return keys | _byte_level_keys(encoder, model, merges, path)
    ids = {text: i for i, text in texts.items() if types[i] == NORMAL}
    scores = np.zeros(len(keys["tokenizer.ggml.tokens"]), np.float32)
    return keys | _piece_keys(encoder, model, merges, ids, scores, path)


def _check_model(model, path):
    plain = {
        "type": ("BPE",), "dropout": (None, 0), "continuing_subword_prefix": (None, ""),
        "end_of_word_suffix": (None, ""),
    }  # fmt: skip
    for name, values in plain.items():
        if model.get(name, values[0]) not in values:
            raise FormatError(path, f"model {name}", model[name], f"{values[0]}, for a GGUF")


def _json_tokens(model, encoder, is_pieces, path, config):
    """({id: text}, {id: type}) of a tokenizer.json."""
    special = from_hf.special_tokens(encoder, config)
    texts = {i: text for text, i in model["vocab"].items()}
    types = dict.fromkeys(texts, NORMAL)
    for i, token in encoder.get_added_tokens_decoder().items():
        text = token.content
        if text in special:
            texts[i], types[i] = text, CONTROL
        elif token.special and not text.isspace():
            texts.pop(i, None)  # a picture: the model has no row for it, and no text spells it
        elif not (is_pieces and SPACE in text and i in types):  # there merges lead to it
            _check_added(token, encoder.normalizer, path)
            texts[i], types[i] = text, USER_DEFINED
    if is_pieces:
        for i, text in texts.items():
            if text == model.get("unk_token"):
                types[i] = UNKNOWN
            elif types[i] == NORMAL and byte_of(text) is not None:
                types[i] = BYTE
    return texts, types


def _check_added(token, normalizer, path):
    """FormatError for an added token that matches otherwise than by its plain text."""
    for flag, is_set in (
        ("single_word", token.single_word), ("lstrip", token.lstrip), ("rstrip", token.rstrip),
        ("normalized", token.normalized and normalizer is not None),
        ("with U+2581", SPACE in token.content),
    ):  # fmt: skip
        if is_set:
            field = f"added token {token.content!r}"
            raise FormatError(path, field, flag, "nothing but its text, for a GGUF")


def _byte_level_keys(encoder, model, merges, path):
    words, ignore_merges = _words(encoder, path), bool(model.get("ignore_merges"))
    pre = byte_level.name_of(words, ignore_merges)
    if pre is None:
        shown = ("ignore_merges and " if ignore_merges else "") + " then ".join(words)
        known = ", ".join(byte_level.PRE_TOKENIZERS)
        raise FormatError(path, "pre_tokenizer", shown, f"one of {known}, for a GGUF")
    keys = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": [" ".join(m) for m in merges]}
    if encoder.normalizer is not None:
        normalizer = " then ".join(step["type"] for step in from_hf.steps_of(encoder.normalizer))
        if normalizer != "NFC":
            raise FormatError(path, "normalizer", normalizer, "NFC or none, for a GGUF")
        keys[from_gguf.NORMALIZER_KEY] = normalizer
    return keys


def _words(encoder, path):
    """The regular expressions by which a byte-level tokenizer splits a text, one after another."""
    words = []
    for part in from_hf.steps_of(encoder.pre_tokenizer):
        type_, behavior = part.get("type"), part.get("behavior")
        if type_ == "ByteLevel":
            if part.get("add_prefix_space"):
                raise FormatError(path, "add_prefix_space", True, "false, for a GGUF")
            words += [byte_level.GPT_2] if part.get("use_regex", True) else []
        elif type_ == "Split" and behavior == "Isolated" and "Regex" in part["pattern"]:
            words.append(("(?!)" if part["invert"] else "") + part["pattern"]["Regex"])
        elif type_ == "Punctuation" and behavior == "Contiguous":
            words.append(byte_level.FALCON[0])
        else:
            words.append(" ".join(filter(None, (type_, behavior))) or "none")
    return words


def _piece_keys(encoder, model, merges, ids, scores, path):
    """ids: {text: id} of the pieces that may be joined. scores: zeros float32 (n_tokens,)."""
    if not model.get("byte_fallback"):
        raise FormatError(path, "model byte_fallback", False, "true, for a GGUF")
    ranked, is_all = merge_scores.scores_of(ids, merges)
    scores[list(ids.values())] = [ranked[text] for text in ids]
    keys = {
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": _adds_space(encoder, path),
    }
    if not is_all:  # our reader prefers them, others pass over them
        log.warning("%s: merges that scores do not express; other engines may differ", path)
        keys["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges]
    return keys


def _adds_space(encoder, path):
    """Whether a space goes in front of each text between special tokens, and off again."""
    parts = encoder.normalizer, encoder.pre_tokenizer, encoder.decoder
    changes, splits, decoding = map(from_hf.steps_of, parts)
    adds_space = changes[:1] == [PREPEND]
    if splits == [METASPACE]:
        splits, changes = [{}], [*changes, REPLACE] if changes != [{}] else [REPLACE]
    is_split = splits != [{}] and splits[0].get("pattern") != {"String": " "}  # there are none left
    if is_split or changes != [PREPEND] * adds_space + [REPLACE]:
        limit = "U+2581 for spaces, and one in front of every text or of none, for a GGUF"
        shown = [step.get("prepend_scheme", step.get("type")) for step in [*changes, *splits]]
        raise FormatError(path, "normalizer, pre_tokenizer", shown, limit)
    if from_hf.drops_space(decoding) != adds_space:
        limit = f"one that {'drops' if adds_space else 'keeps'} a space in front, for a GGUF"
        raise FormatError(path, "decoder", [step.get("type") for step in decoding], limit)
    return adds_space


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
    metadata = _metadata(source, config)
    _repair(metadata, config, source.path)
    fields = from_gguf.Fields(source.path, metadata)
    tokens = fields.strings("tokens")
    is_pieces = fields.get("model", str) == PIECES_MODEL
    for i in from_gguf.repeated(tokens, ()):
        raise fields.error(f"tokens[{i}]", tokens[i], "a text of its own, for a tokenizer.json")
    encoder, types = (_pieces if is_pieces else _byte_level)(fields, tokens, config)
    added = np.flatnonzero(np.isin(types, (CONTROL, UNKNOWN, USER_DEFINED))).tolist()
    from_gguf.add_tokens(encoder, tokens, added, types, from_gguf.strips(fields, tokens))
    prefix, suffix = from_gguf.affixes(fields, config, is_pieces)
    if prefix or suffix:
        from tokenizers import processors

        names = [(tokens[i], i) for i in dict.fromkeys(prefix + suffix)]
        single = [*(tokens[i] for i in prefix), "$A", *(tokens[i] for i in suffix)]
        processor = processors.TemplateProcessing(single=single, special_tokens=names)
        encoder.post_processor = processor
    ids = {
        "bos_token": config.bos_token_id,
        "eos_token": next(iter(suffix or config.eos_token_ids), None),
        "pad_token": fields.get("padding_token_id", int),
        "unk_token": next(iter(np.flatnonzero(types == UNKNOWN).tolist()), None),
    }
    settings = {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}
    if TEMPLATE_KEY in metadata:
        settings["chat_template"] = metadata[TEMPLATE_KEY]
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }
    return {"tokenizer.json": encoder.to_str().encode(), "tokenizer_config.json": _json(settings)}


def _json(value):
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _byte_level(fields, tokens, config):
    """(tokenizers.Tokenizer, type of each token)."""
    merges = fields.strings("merges") or []
    types = from_gguf.byte_level_types(fields, tokens, merges, config)
    ids = {text: i for i, text in enumerate(tokens) if types[i] != UNUSED}
    split = from_gguf.byte_level_split(fields)
    return byte_level.encoder(fields.path, ids, merges, *split), types


def _pieces(fields, tokens, config):
    """The same, as transformers converts Llama's tokenizers."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = from_gguf.read_pieces(fields, tokens, config)
    merges = merge_scores.merges_of(pieces) if pieces.merges is None else pieces.merges
    for text, i in pieces.of(USER_DEFINED).items():
        tokens[i] = text.replace(SPACE, " ")  # the library looks for them in the text as it is
    make = partial(
        models.BPE,
        vocab={text: i for i, text in enumerate(tokens) if pieces.types[i] != UNUSED},
        merges=merges,
        unk_token=next(iter(pieces.of(UNKNOWN)), None),
        fuse_unk=True,
        byte_fallback=True,
    )
    encoder = Tokenizer(call(fields.path, byte_level.MERGES_KEY, "pairs of tokens", make))
    space = [normalizers.Prepend(SPACE)] if pieces.adds_space else []
    encoder.normalizer = normalizers.Sequence([*space, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if pieces.adds_space else []
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    encoder.decoder = decoders.Sequence(steps)
    return encoder, pieces.types
