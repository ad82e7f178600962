"""plan(): the memory a model will need, by what it is for, from its configuration alone.

Everything here is written to and private to the process; mapped files come on top and are shared.
tests/test_inspect.py holds these figures against the pool of a loaded model.
"""

import math
from dataclasses import dataclass

from .cache import ITEM_BYTES
from .families import FAMILIES

PAGE = 128  # positions in a page of the KV cache
ALIGN = 64  # bytes: every allocation of the pool is a multiple
MAX_BATCH = 256  # rows of one forward pass, as Transformer has it
CODES_BLOCK = 128  # columns that activations are padded to

# What the process grows by beside the pool: the tokenizer's library (measured: 5 MiB), its entries
# (61-69 MiB for llama-3's 128,256) and a team of threads.
LIBRARY_BYTES = 8 << 20
TOKEN_BYTES = 600
THREAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Need:
    """Bytes for one purpose. in_pool: exact, and counted by the pool; else an estimate."""

    purpose: str
    nbytes: int
    what: str
    in_pool: bool = True


def plan(config, *, context, kv_dtype="f16", slots=1, threads=1, n_tokens=None, weights=0):
    """[Need] of a model that is loaded and in use, every slot full.

    config: ModelConfig. context: positions a sequence may have. kv_dtype: of cached keys and
    values. slots: sequences at once. threads: of every operation. n_tokens: entries of the
    tokenizer, None for vocab_size. weights: bytes of tensors kept in the pool, where there is no
    cache folder or they are copied.
    """
    pages, layers = -(-context // PAGE), config.num_hidden_layers
    n_tokens = config.vocab_size if n_tokens is None else n_tokens
    needs = [
        Need("kv", slots * kv_bytes(config, context, kv_dtype),
             f"keys and values: {slots} x {pages} pages of {PAGE} positions in {layers} layers"),
        Need("scratch", _scratch(config, MAX_BATCH), f"{MAX_BATCH} rows of a forward pass"),
        Need("rope", _rope(config, context), f"cosines and sines of {context:,} positions"),
        Need("norms", _norms(config), "copies in float32"),
        Need("logits", _array(slots, config.vocab_size), f"{slots} x {config.vocab_size:,}"),
        Need("tokenizer", LIBRARY_BYTES + TOKEN_BYTES * n_tokens, f"{n_tokens:,} tokens", False),
        Need("threads", THREAD_BYTES * threads, f"{threads} with their stacks", False),
    ]  # fmt: skip
    if weights:
        needs.insert(0, Need("weights", weights, "tensors that are not used in the mapped file"))
    return needs


def kv_bytes(config, capacity, dtype):
    """Bytes of the pages of one sequence of `capacity` positions, in all layers."""
    values = 2 * config.num_key_value_heads * PAGE * config.head_dim
    return config.num_hidden_layers * -(-capacity // PAGE) * _aligned(values * ITEM_BYTES[dtype])


def _aligned(n_bytes):
    return -(-n_bytes // ALIGN) * ALIGN


def _array(*shape, item=4):
    return _aligned(math.prod(shape) * item)


def _scratch(config, n):
    """As Transformer._scratch takes it from the pool."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    q_width = config.num_attention_heads * config.head_dim
    qkv = q_width + 2 * config.num_key_value_heads * config.head_dim
    has_projected = "self_attn.q_proj.norm" in FAMILIES[config.family].norms
    columns = [hidden, hidden, qkv, q_width, 2 * ffn, ffn, hidden if has_projected else 0]
    padded = -(-max(hidden, q_width, ffn) // CODES_BLOCK) * CODES_BLOCK
    return sum(_array(n, width) for width in columns) + _array(n, padded, item=1) + 2 * _array(n)


def _rope(config, context):
    """A table of cosines and one of sines for each RoPE base in use."""
    local, everywhere = config.rope_local_theta, config.rope_theta
    bases = {local if slides else everywhere for slides in config.sliding_layers or (False,)}
    return 2 * len(bases) * _array(context, config.head_dim // 2)


def _norms(config):
    return sum(_array(*shape) for shape in config.tensor_shapes().values() if len(shape) == 1)
