"""chat: a conversation; the keys and values of what was said before are kept between turns."""

import contextlib
import os
import sys
import time

import numpy as np

import bitnet

from ..generation.detokenizer import Detokenizer
from ..generation.sampling import Sampling, make_sampler
from . import options
from .terminal import Status, write

USAGE = "[MODEL]"
WORDS = (0, 1)
COMMANDS = "/reset forgets the conversation, /exit or ctrl-D ends it, ctrl-C stops a reply"


def configure(parser):
    parser.epilog = COMMANDS + (".\nA model without a chat template continues the text of both.")
    options.add_load(parser)
    options.add_generation(parser, max_tokens=512)
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")


def main(args):
    keywords = options.generation_keywords(args)
    status = Status()
    status.show(f"loading {args.words[0] if args.words else 'the bundled model'}")
    with bitnet.load(*args.words, **options.load_keywords(args)) as model:
        if model.tokenizer.chat_template is None:
            if args.system is not None:
                raise ValueError("--system: the model has no chat template")
            status.say("[the model has no chat template: it continues what you write]")
        status.say(f"[{COMMANDS}]")
        with model.session() as session:
            talk(Conversation(model, session, keywords, args.system), _lines(), status)
    return 0


def talk(conversation, lines, status):
    """Answer every line until /exit or the end of input."""
    for line in lines:
        if line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
            continue
        if not line.strip():
            continue
        status.show("reading")
        try:
            with contextlib.closing(conversation.reply(line)) as pieces:
                for piece in pieces:
                    status.clear()
                    write(piece)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        except bitnet.ContextFull as error:
            status.clear()
            print(f"bitnet: {error}; /reset begins anew", file=sys.stderr)
            continue
        write("\n")
        status.say(conversation.summary())


def _lines():
    """Lines from a person, with editing and history where readline is there, or from a file."""
    if not sys.stdin.isatty():
        yield from (line.removesuffix("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() uses it once it is imported
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")
    print()


class Conversation:
    """What was said, and the session that holds its keys and values.

    keywords: of Model.generate. With the model's template each line is a message; without one the
    lines and replies are one text that goes on.
    """

    def __init__(self, model, session, keywords, system=None):
        self.model, self.session = model, session
        given = {k: v for k, v in keywords.items() if k not in ("max_tokens", "stop")}
        self.max_tokens, self.stop = keywords["max_tokens"], keywords["stop"]
        given.setdefault("seed", int.from_bytes(os.urandom(8), "little"))
        config = model.config
        usual = ("temperature", "top_k", "top_p") if config.do_sample else ()
        self.sampling = Sampling(**{name: getattr(config, name) for name in usual} | given)
        self.eos_ids = {*config.eos_token_ids, *model.tokenizer.eos_ids}
        self.system = [{"role": "system", "content": system}] if system is not None else []
        self.reset()

    def reset(self):
        """Begin anew."""
        self.messages, self.text = list(self.system), ""
        self.n_read = self.n_written = 0
        self.times = [time.perf_counter()] * 3

    def reply(self, line):
        """Yield the reply to ``line`` in pieces. What came before an interrupt is remembered.

        ContextFull: when the line itself has no room, it is forgotten.
        """
        ids = self._ids(line)
        said = []
        try:
            for piece in self._pieces(ids):
                said.append(piece)
                yield piece
        finally:
            if self.n_read:
                self._remember(line, "".join(said))

    def summary(self):
        """Figures of the last reply, one line."""
        start, first, last = self.times
        read = self.n_read / max(first - start, 1e-9)
        written = self.n_written / max(last - first, 1e-9)
        return (
            f"[{self.n_read} tokens read at {read:,.1f} a second, {self.n_written} written at "
            f"{written:,.1f}; {self.session.length} of {self.session.capacity} in use]"
        )

    def _ids(self, line):
        tokenizer, capacity = self.model.tokenizer, self.session.capacity
        if tokenizer.chat_template is None:
            ids = tokenizer.encode(self.text + line, limit=capacity)
        else:
            message = {"role": "user", "content": line}
            ids = tokenizer.chat([*self.messages, message], limit=capacity)
        if len(ids) > capacity:
            raise bitnet.ContextFull(0, len(ids), capacity)
        return ids

    def _remember(self, line, said):
        self.text += f"{line}{said}\n"
        self.messages += [{"role": "user", "content": line}, {"role": "assistant", "content": said}]

    def _pieces(self, ids):
        """Generate after ``ids``, of which only what the session does not hold yet is read."""
        session, text = self.session, Detokenizer(self.model.tokenizer.stream(), self.stop)
        sampler = make_sampler(self.sampling, self.model.config.vocab_size)
        self.n_read = self.n_written = 0
        self.times = [time.perf_counter()] * 3
        known = min(common_length(session.token_ids, ids), len(ids) - 1)
        session.trim(known)
        logits = session.feed(ids[known:])
        self.n_read, self.times[1] = len(ids) - known, time.perf_counter()
        while self.n_written < self.max_tokens:
            seen = np.unique(session.token_ids) if sampler.penalises else ()
            token = sampler(logits, session.length, seen)
            self.n_written, self.times[2] = self.n_written + 1, time.perf_counter()
            if token in self.eos_ids:
                break
            yield text.push(token)
            if text.stopped is not None or session.length == session.capacity:
                break
            logits = session.decode(token)
        yield text.finish()


def common_length(a, b):
    """How many tokens two lists begin with in common."""
    for n, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return n
    return min(len(a), len(b))
