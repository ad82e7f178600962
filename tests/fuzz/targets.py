"""What the fuzzer runs: each target reads a folder and returns, or raises FormatError."""

import contextlib

import numpy as np
from support.caches import cache_of

from bitnet.checkpoints import weights
from bitnet.checkpoints.convert import convert
from bitnet.errors import ContextFull, TemplateError
from bitnet.formats.gguf import GGUFFile
from bitnet.formats.gguf_metadata import StringArray
from bitnet.formats.safetensors import open_folder
from bitnet.generation import session_file
from bitnet.models.sequence_state import KVCachePart, SequenceState
from bitnet.models.transformer import Transformer
from bitnet.runtime.pool import Pool
from bitnet.text.tokenizer import Tokenizer
from bitnet.text.vocabulary.pieces import Encoder
from bitnet.text.vocabulary.sentencepiece import read
from bitnet.verify import verify

CPU_SECONDS = 1.0  # that a case may take
GGUF_NAME = "model.gguf"
POOL_BYTES = 32 << 20
CONTEXT = 16
TEXT = "a b <s>\n\u20ac" + 40 * "a" + "c"  # the letters for a regular expression that explodes


def gguf(folder):
    """The reader alone, and every string it left in the map."""
    file = GGUFFile(folder / GGUF_NAME)
    for value in file.metadata.values():
        if isinstance(value, StringArray):
            list(value)
            "a" in value  # noqa: B015


def safetensors(folder):
    """The reader of a folder alone."""
    open_folder(folder)


def sentencepiece(folder):
    """The reader of tokenizer.model alone, and a text by its pieces."""
    Encoder(read(folder / "tokenizer.model"), {})(TEXT)


SESSION = {"fingerprint": "the model", "capacity": 300, "dtype": "f16"}  # of the corpus


def empty_state(pool):
    """A state that the sessions of the corpus fit."""
    part = KVCachePart(cache_of(pool, SESSION["capacity"], dtype=SESSION["dtype"]))
    return SequenceState({"kv": part}, capacity=SESSION["capacity"], dtype=SESSION["dtype"])


def session(folder):
    """A saved session, restored."""
    state = empty_state(Pool(POOL_BYTES))
    with contextlib.suppress(ContextFull):
        session_file.load(folder / GGUF_NAME, state, SESSION["fingerprint"])


def open_and_run(path):
    """Open a model as `load` does, and run one forward pass, which looks at every weight."""
    pool = Pool(POOL_BYTES)  # never closed: logits are views of it
    with weights.open(path, cache=False, pool=pool) as opened:
        tokenizer = Tokenizer.from_source(opened.tokenizer_source, opened.config)
        if tokenizer is not None:
            _use(tokenizer)
        context = min(CONTEXT, opened.config.max_position_embeddings)
        model = Transformer(opened, pool, context=context, max_batch=2)
        ids = np.array([0, opened.config.vocab_size - 1][:context], np.int32)
        model.forward(ids, [(model.new_state(len(ids)), len(ids))])


def _use(tokenizer):
    """Encode, decode, and render the chat template, which may fail by its own fault."""
    tokenizer.decode(tokenizer.encode(TEXT))
    with contextlib.suppress(TemplateError):
        tokenizer.chat([{"role": "user", "content": TEXT}])


def check_and_convert(path, target):
    """`bitnet verify`, whose report says what is wrong, and `bitnet convert`."""
    verify(path, threads=1)
    convert(path, target, force=True)


# name -> (function, folder of the corpus its cases start from)
TARGETS = {
    "gguf": (gguf, "gguf"),
    "safetensors": (safetensors, "hf"),
    "sentencepiece": (sentencepiece, "sentencepiece"),
    "session": (session, "session"),
    "gguf model": (lambda folder: open_and_run(folder / GGUF_NAME), "gguf"),
    "hf model": (open_and_run, "hf"),
    "gguf parts": (open_and_run, "parts"),
    "gguf tools": (
        lambda folder: check_and_convert(folder / GGUF_NAME, folder.parent / "out"), "gguf",
    ),
    "hf tools": (lambda folder: check_and_convert(folder, folder.parent / "out.gguf"), "hf"),
}  # fmt: skip
try:
    from . import request_targets
except ImportError:  # without the server's extra
    request_targets = None
else:
    TARGETS["requests"] = (request_targets.requests, "requests")
    TARGETS["responses"] = (request_targets.responses, "responses")
    TARGETS["messages"] = (request_targets.messages, "messages")
