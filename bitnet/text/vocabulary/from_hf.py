"""The vocabulary of a Hugging Face folder: tokenizer.json, or without one tokenizer.model."""

import json
import os

import numpy as np

from ...errors import FormatError
from . import sentencepiece
from .library import call, find_ids
from .pieces import Encoder
from .vocabulary import (
    ALWAYS_SPECIAL,
    BYTE,
    CONTROL,
    MAX_SHRINKING,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    bos_eos_ids,
    checked_template,
    end_ids,
    marks_among,
)

MAX_JSON_BYTES = 128 << 20  # bytes; Gemma's, of 262,144 tokens and 514,906 merges, has 33 MB
EXPECTED_JSON = "a tokenizer.json"  # what messages say a damaged file should be


def from_json(path, config_json, config):
    """The Vocabulary of a tokenizer.json; config_json: the object in tokenizer_config.json."""
    encoder = load(path)
    template = template_of(config_json, path.parent)
    added = encoder.get_added_tokens_decoder()
    special = special_tokens(encoder, config)
    ordinary = {
        token.content: i
        for i, token in added.items()
        if token.content not in special and i < config.vocab_size
    }
    marks = marks_among(ordinary, template, path)
    prefix, suffix = affixes(encoder, config_json, config, path)
    encoder = _guarded(encoder, special | marks, path)
    parts = steps_of(encoder.decoder)
    byte_level = is_byte_level(parts, path)
    texts = {token_id: text for text, token_id in (special | marks).items()}
    return Vocabulary(
        encode=_encode(encoder, path),
        token=lambda token_id: texts.get(token_id) or encoder.id_to_token(token_id),
        longest=lambda: _longest(encoder),
        special=special,
        prefix=prefix,
        suffix=suffix,
        byte_level=byte_level,
        drops_space=drops_space(parts),
        bos_id=config.bos_token_id,
        eos_ids=end_ids(special, config),
        chat_template=template,
        marks=marks,
        verbatim=frozenset(ordinary.values()),
        strips={token.content: (token.lstrip, token.rstrip) for token in added.values()},
    )


def load(path):
    """The tokenizers.Tokenizer of a file; FormatError for one that the library does not take."""
    from tokenizers import Tokenizer  # 40 ms

    size = os.stat(path).st_size
    if size > MAX_JSON_BYTES:
        raise FormatError(path, "file size", size, f"at most {MAX_JSON_BYTES} bytes")
    # not by its path, which need not be UTF-8
    encoder = call(path, "tokenizer", EXPECTED_JSON, Tokenizer.from_buffer, path.read_bytes())
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def special_tokens(encoder, config):
    """{text: id} of the added tokens that no text may spell, whatever the file calls them.

    One of spaces and newlines is an ordinary token, also where it is listed as special; and a model
    without pictures has no row for Gemma's <image_soft_token>.
    """
    bos_eos = bos_eos_ids(config)
    return {
        token.content: token_id
        for token_id, token in encoder.get_added_tokens_decoder().items()
        if (token.special or token_id in bos_eos or token.content in ALWAYS_SPECIAL)
        and not token.content.isspace()
        and token_id < config.vocab_size
    }


def affixes(encoder, config_json, config, path):
    """(prefix, suffix): what the post-processor puts around a text, or the configuration asks for.

    tokenizer_config.json has its say only where the post-processor does nothing: Qwen3's embedding
    models say add_bos_token false and have a post-processor for their end token.
    """
    limit = "one that takes a text"
    bare = call(path, "tokenizer", limit, encoder.encode, "a", None, False, False).ids
    full = call(path, "tokenizer", limit, encoder.encode, "a").ids
    starts = range(len(full) - len(bare) + 1)
    at = next((i for i in starts if full[i : i + len(bare)] == bare), None)
    if not bare or at is None:
        raise FormatError(path, "post_processor", f"{bare} becomes {full}", "ids around a text")
    prefix, suffix = full[:at], full[at + len(bare) :]
    for token_id in prefix + suffix:
        if token_id >= config.vocab_size:
            raise FormatError(path, "post_processor id", token_id, f"below {config.vocab_size}")
    bos, eos = stated_bos_eos(config_json, config, False)
    return prefix or bos, suffix or eos


def stated_bos_eos(config_json, config, default_bos):
    """What add_bos_token and add_eos_token of tokenizer_config.json ask for: ([id], [id])."""
    bos, eos = config.bos_token_id, next(iter(config.eos_token_ids), None)
    adds_bos = config_json.get("add_bos_token", default_bos) is True and bos is not None
    adds_eos = config_json.get("add_eos_token") is True and eos is not None
    return [bos] * adds_bos, [eos] * adds_eos


def _guarded(encoder, special, path):
    """The encoder, made to take special tokens in a text for text.

    A setting of the library does that for most files; for the others the encoder is made anew from
    an altered file.
    """
    added = encoder.get_added_tokens_decoder()
    encoder.add_special_tokens(list(special))  # those that were added as ordinary tokens
    encoder.encode_special_tokens = True
    has_spaces = any(token.special and token.content.isspace() for token in added.values())
    find = find_ids(path, encoder)
    if not has_spaces and not any(i in find(text) for text, i in special.items()):
        return encoder
    from tokenizers import Tokenizer

    text = json.dumps(_without(json.loads(path.read_text(encoding="utf-8")), special, added))
    return call(path, "tokenizer", EXPECTED_JSON, Tokenizer.from_str, text)


def _without(data, special, added):
    """The object of a tokenizer.json in which no text and no merge leads to a special token."""
    model, renamed = data["model"], {text: " " + text for text in special}
    kept = {t.content: i for i, t in added.items() if not t.special or t.content.isspace()}
    kept = {text: i for text, i in kept.items() if text not in special}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(t, t): i for t, i in (model["vocab"] | special).items()}
        model["vocab"] |= kept  # or the library would number them anew
    else:
        model["vocab"] = [[renamed.get(t, t), score] for t, score in model["vocab"]]
    if model.get("unk_token") in special:
        model["unk_token"] = renamed[model["unk_token"]]
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if not special.keys() & {*pair, "".join(pair)}]
    listed = [token | {"special": False} for token in data["added_tokens"]]
    return data | {"added_tokens": [token for token in listed if token["content"] in kept]}


def _encode(encoder, path):
    """Vocabulary.encode. Metaspace may want its space at the begin of the prompt alone."""
    from tokenizers import Tokenizer, pre_tokenizers

    first = rest = find_ids(path, encoder)
    steps = steps_of(encoder.pre_tokenizer)
    if any(step.get("prepend_scheme") == "first" for step in steps):
        if len(steps) > 1:
            raise FormatError(path, "pre_tokenizer", "first in a sequence", "Metaspace alone")
        inside = Tokenizer(encoder.model)
        inside.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=steps[0]["replacement"], prepend_scheme="never", split=steps[0]["split"]
        )
        if encoder.normalizer is not None:
            inside.normalizer = encoder.normalizer
        added = encoder.get_added_tokens_decoder()
        inside.add_tokens([added[token_id] for token_id in sorted(added)])
        inside.encode_special_tokens = True
        rest = find_ids(path, inside)
    return lambda text, begins: first(text) if begins else rest(text)


def steps_of(part):
    """[object] of tokenizer.json, one a step of an encoder's normalizer, pre_tokenizer, decoder."""
    state = {} if part is None else json.loads(part.__getstate__())
    for several in ("normalizers", "pretokenizers", "decoders"):
        state = state.get(several, state) if isinstance(state, dict) else state
    return state if isinstance(state, list) else [state]


def is_byte_level(parts, path):
    types = [part.get("type") for part in parts]
    for type_, byte_level in (("ByteLevel", True), ("ByteFallback", False), ("Metaspace", False)):
        if type_ in types:
            return byte_level
    raise FormatError(path, "decoder", types, "ByteLevel, ByteFallback or Metaspace")


def drops_space(parts):
    """Whether decoding takes away a space in front."""
    return any(
        (part.get("type") == "Strip" and part["content"] == " " and part["start"] == 1)
        or (part.get("type") == "Metaspace" and part["prepend_scheme"] != "never")
        for part in parts
    )


def _longest(encoder):
    longest = max(map(len, encoder.get_vocab()), default=1)
    return longest * (1 if encoder.normalizer is None else MAX_SHRINKING)


def template_of(config_json, path):
    """The chat template of a tokenizer_config.json: of several, the one called default."""
    template = config_json.get("chat_template")
    if isinstance(template, list):
        for entry in template:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise FormatError(path, "chat_template", entry, "an object with name and template")
        named = {entry["name"]: entry.get("template") for entry in template}
        template = named.get("default")
    return checked_template(template, path)


# tokenizer.model ----------------------------------------------------------------------------------


def from_model(path, config_json, config):
    """The Vocabulary of a tokenizer.model and the tokens that tokenizer_config.json adds to it."""
    pieces, added = read_model(path, config_json, config)
    template = template_of(config_json, path.parent)
    marks = take_marks(pieces, template)
    encoder = Encoder(pieces, {text: i for text, i in added.items() if text not in marks})
    everywhere = config_json.get("legacy") is not False
    prefix, suffix = stated_bos_eos(config_json, config, True)
    return of_pieces(
        pieces,
        config,
        encode=lambda text, begins: encoder(text, begins or everywhere),
        longest=encoder.longest,
        prefix=prefix,
        suffix=suffix,
        chat_template=template,
        marks=marks,
        strips=stated_strips(config_json),
    )


def take_marks(pieces, template):
    """Vocabulary.marks; no text spells these pieces from then on."""
    marks = marks_among(pieces.of(USER_DEFINED), template, pieces.path)
    pieces.types[list(marks.values())] = CONTROL
    return marks


def of_pieces(pieces, config, ends=(), marks=None, **rest):
    """The Vocabulary of some Pieces; rest: its fields that they do not say. ends: see end_ids."""
    marks = marks or {}
    controls = pieces.of(CONTROL, UNKNOWN)
    special = {text: i for text, i in controls.items() if text not in marks}
    types, texts = pieces.types.tolist(), pieces.texts
    return Vocabulary(
        token=lambda i: texts[i] if i < len(texts) and types[i] != UNUSED else None,
        special=special,
        byte_level=False,
        drops_space=pieces.adds_space,
        bos_id=config.bos_token_id,
        eos_ids=end_ids(special, config, ends),
        marks=marks,
        **rest,
    )


def read_model(path, config_json, config):
    """(Pieces, {text: id} of the tokens that divide a text before the pieces are looked for)."""
    pieces = sentencepiece.read(path)
    if len(pieces.texts) > config.vocab_size:
        raise FormatError(path, "pieces", len(pieces.texts), f"at most {config.vocab_size}")
    added = {}
    for token_id, (text, is_special) in sorted(_listed(config_json, path.parent, config).items()):
        _extend(pieces, token_id)
        if pieces.texts[token_id] != text and pieces.types[token_id] != UNUSED:
            limit = f"piece {token_id}, {pieces.texts[token_id]}"
            raise FormatError(path.parent, f"added_tokens_decoder {token_id}", text, limit)
        pieces.texts[token_id] = text
        if not is_special:
            added[text] = token_id
        if pieces.types[token_id] != UNKNOWN:
            pieces.types[token_id] = CONTROL if is_special else USER_DEFINED
    make_special(pieces, config)
    return pieces, {text: i for text, i in added.items() if pieces.types[i] == USER_DEFINED}


def make_special(pieces, config):
    """Change Pieces: the tokens that end a text, or a turn, are no text, whatever a file says."""
    bos_eos = bos_eos_ids(config)
    for i, (text, type_) in enumerate(zip(pieces.texts, pieces.types.tolist(), strict=True)):
        if (
            (text in ALWAYS_SPECIAL or i in bos_eos)
            and type_ != BYTE
            and text.strip(SPACE + " \n\t")
        ):
            pieces.types[i] = CONTROL


def _listed(config_json, path, config):
    """{id: (text, whether it is special)} of added_tokens_decoder."""
    listed, tokens = config_json.get("added_tokens_decoder", {}), {}
    for key, entry in listed.items() if isinstance(listed, dict) else ():
        field, text = f"added_tokens_decoder {key}", entry
        if not key.isdecimal() or len(key) > 9:
            raise FormatError(path, field, key, "an id")
        if isinstance(entry, dict):
            text = entry.get("content")
        if not isinstance(entry, dict) or not isinstance(text, str) or not text:
            raise FormatError(path, field, text, "an object with the token's content")
        is_special = entry.get("special") is True and not text.isspace()
        if int(key) < config.vocab_size:
            tokens[int(key)] = text, is_special
        elif not is_special:
            raise FormatError(path, field, text, f"an id below {config.vocab_size}")
    return tokens


def stated_strips(config_json):
    """Vocabulary.strips of added_tokens_decoder, which _listed has checked."""
    listed = config_json.get("added_tokens_decoder", {})
    entries = listed.values() if isinstance(listed, dict) else ()
    return {
        entry["content"]: (entry.get("lstrip") is True, entry.get("rstrip") is True)
        for entry in entries
    }


def _extend(pieces, token_id):
    """Change Pieces so that they have this id."""
    n_more = token_id + 1 - len(pieces.texts)
    if n_more > 0:
        pieces.texts += [f"[PAD{i}]" for i in range(len(pieces.texts), token_id + 1)]
        pieces.scores = np.append(pieces.scores, np.zeros(n_more, np.float32))
        pieces.types = np.append(pieces.types, np.full(n_more, UNUSED, pieces.types.dtype))
