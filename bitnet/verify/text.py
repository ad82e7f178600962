"""What a model says of itself, and its tokenizer: special ids, round trips, chat template."""

from ..errors import FormatError, TemplateError
from ..text import vocabulary
from ..text.special_tokens import SpecialTokens
from ..text.tokenizer import Tokenizer
from .result import FAILED, OK, WARNING, Check, reason, some

PLAIN = "The quick brown fox (it's 42) jumps over the lazy dog."
SAMPLES = {
    "plain": PLAIN,
    "emoji": "👩‍👩‍👧 and 🌍!",
    "CJK": "日本語のテキスト、中文",
    "accents": "Zażółć gęślą jaźń, Привет",
    "digits": "3.14159 12345678 1,000",
    "white space": "a\n\n  b\tc \r\n",
    "code": "def f(x):\n    return x**2  # we'll see",
}
MESSAGE = "Which way to the harbour?"
REPLY = "Down the hill, then left."
MAX_UNUSED = 0.1  # share of the embedding's rows without a token: published ones pad by 1 %
MAX_SPECIAL = 300  # special tokens that are looked at; llama-3 has 256
MAX_BEYOND = 1024  # ids behind the embedding's last row that are looked at


def check_config(checkpoint):
    """Check "activation": whether the file states it."""
    config, arch = checkpoint.config, checkpoint.config.arch
    metadata = getattr(checkpoint.files[0], "metadata", None)
    if metadata is None or f"{config.architecture}.hidden_activation" in metadata:
        yield Check("activation", OK, f"{config.hidden_act}, as the file states")
    elif len(arch.activations) == 1:
        yield Check("activation", OK, f"{config.hidden_act}, as of every {arch.name} model")
    else:
        status = WARNING if config.architecture in arch.ambiguous else OK
        guess = f"guessed from architecture {config.architecture}; the file does not say"
        yield Check("activation", status, f"{config.hidden_act}, {guess}")


def build(checkpoint, chat_template=None):
    """(Vocabulary, Tokenizer, [Check "tokenizer"]) of a Checkpoint; chat_template: as of load.

    None, None where it has none or it is damaged.
    """
    try:
        source = checkpoint.tokenizer_source.with_template(chat_template)
        vocab = vocabulary.from_source(source, checkpoint.config)
        tokenizer = vocab and Tokenizer(vocab)
    except FormatError as error:
        return None, None, [Check("tokenizer", FAILED, reason(error, checkpoint.path))]
    if vocab is None:
        return None, None, [Check("tokenizer", WARNING, "none: only token ids can be used")]
    return vocab, tokenizer, [_check_size(vocab, checkpoint.config.vocab_size)]


def _check_size(vocab, n_rows):
    n_tokens = sum(vocab.token(i) is not None for i in range(n_rows))
    detail = f"{n_tokens:,} tokens, {n_rows:,} rows in the embedding"
    beyond = [i for i in range(n_rows, n_rows + MAX_BEYOND) if vocab.token(i) is not None]
    if beyond:  # Gemma lists one for pictures; what ordinary text reaches, "round trips" finds
        detail += f"; tokens without a row: {some([_named(vocab, [i]) for i in beyond])}"
        return Check("tokenizer", WARNING, detail)
    status = WARNING if n_tokens < (1 - MAX_UNUSED) * n_rows else OK
    return Check("tokenizer", status, detail)


def check_tokenizer(vocab, tokenizer, checkpoint):
    """Checks "special tokens", "stop tokens", "round trips" and "chat template"."""
    yield _check_special(vocab, tokenizer, checkpoint)
    yield _check_stops(vocab, tokenizer, checkpoint.config)
    yield _check_round_trips(tokenizer, checkpoint.config.vocab_size)
    yield from _check_template(vocab, tokenizer, checkpoint.config)


def _check_special(vocab, tokenizer, checkpoint):
    """Every special token, written out, must become its id."""
    looked_at = list(vocab.special.items())[:MAX_SPECIAL]
    lost = [
        f"{text} is {ids}, not {token_id}"
        for text, token_id in looked_at
        if (ids := tokenizer.encode(text, add_bos=False, parse_special=True)) != [token_id]
    ]
    if lost:
        return Check("special tokens", FAILED, f"not reachable: {some(lost)}")
    begin, end = (_named(vocab, ids) or "none" for ids in (vocab.prefix, vocab.suffix))
    detail = f"{len(vocab.special)}; in front of a text: {begin}"
    if checkpoint.config.pooling is not None:
        detail += f", behind it: {end}"
    return Check("special tokens", OK, detail)


def _named(vocab, ids):
    return ", ".join(f"{vocab.token(i)} ({i})" for i in ids)


def _check_stops(vocab, tokenizer, config):
    ids = tuple(tokenizer.eos_ids)
    if not ids:
        status = WARNING if config.pooling is None else OK
        return Check("stop tokens", status, "none: only a limit ends a text")
    more = [i for i in ids if i not in config.eos_token_ids]
    unnamed = f"; not named by the file: {_named(vocab, more)}" if more else ""
    missing = [str(i) for i in ids if vocab.token(i) is None]
    if missing:
        return Check("stop tokens", WARNING, f"without a text: {', '.join(missing)}")
    return Check("stop tokens", OK, _named(vocab, ids) + unnamed)


def _check_round_trips(tokenizer, vocab_size):
    lost, beyond = [], []
    for name, text in SAMPLES.items():
        ids = tokenizer.encode(text)
        if max(ids, default=0) >= vocab_size:
            beyond.append(f"{name}: {max(ids)}")
        if (decoded := tokenizer.decode(ids)) != text:
            lost.append(f"{name}: {text!r} comes back as {decoded!r}")
    if beyond:
        detail = f"ids beyond the embedding's {vocab_size:,} rows: {some(beyond)}"
        return Check("round trips", FAILED, detail)
    if lost:  # some normalise what is not plain
        return Check("round trips", FAILED if "plain:" in lost[0] else WARNING, some(lost, 2))
    return Check("round trips", OK, f"{len(SAMPLES)} texts ({', '.join(SAMPLES)})")


# chat template ------------------------------------------------------------------------------------


def _check_template(vocab, tokenizer, config):
    template = tokenizer.chat_template
    if template is None:
        if config.pooling is None:
            yield Check("chat template", OK, "none, as of a base model")
        return
    user = {"role": "user", "content": MESSAGE}
    try:
        text = template.render([user])
        turn_end = _turn_end(template, vocab, [user, {"role": "assistant", "content": REPLY}])
    except TemplateError as error:
        yield Check("chat template", FAILED, str(error))
        return
    notes = []
    if template.source != vocab.chat_template:
        notes.append("the file's writes 'BITNETAssistant: ' and never ends a turn; BitNet's own "
                     "is used instead, but other engines will use the file's")  # fmt: skip
    if turn_end is None:
        notes.append("no special token ends a reply")
    elif vocab.special[turn_end] not in tokenizer.eos_ids:
        notes.append(f"a reply ends with {turn_end}, which is not a stop token")
    facts = [f"{text!r}" if len(text) <= 200 else f"{text[:200]!r}..."]
    if template.lacks_system:
        facts.append("without a system role: such a message is put in front of the user's")
    yield Check("chat template", WARNING if notes else OK, "; ".join([*notes, *facts]))


def _turn_end(template, vocab, messages):
    """The special token that the template writes behind a reply, None if none."""
    pieces = template.pieces(messages, SpecialTokens(vocab.special), add_generation_prompt=False)
    behind = False
    for piece, is_special in pieces:
        if behind and is_special:
            return piece
        behind = behind or REPLY in piece
    return None
