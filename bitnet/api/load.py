"""load(): a path and limits to a Model; and what was found on this machine."""

import ctypes
import os
import sys
import traceback
from pathlib import Path

from ..checkpoints import hub, weights
from ..checkpoints.memory_plan import Planner, Settings
from ..checkpoints.open_checkpoint import open_checkpoint
from ..checks import check_choice, check_whole, parse_bytes
from ..errors import MemoryLimitExceeded
from ..runtime import cpu
from ..runtime.pool import Pool
from ..text.tokenizer import Tokenizer
from .model import Model

DEFAULT_CONTEXT = 4096
MAX_SLOTS = 256
KV_DTYPES = ("f16", "f32", "int8")
MAPPINGS = ("map", "prefetch", "lock", "copy")
BUNDLED_MODEL = Path(__file__).parents[1] / "data" / "model.gguf"


def load(
    path=None,
    *,
    threads=None,
    memory_limit=None,
    context=None,
    kv_dtype="f16",
    mapping="map",
    slots=1,
    layout="128x32",
    prefix_cache=True,
    prefix_folder=None,
    prefix_folder_limit="4GiB",
):
    """Open a model: a .gguf file, a Hugging Face folder, or None for the one in the package.

    path: also ORG/NAME[@REVISION][:FILE.gguf] of the Hugging Face hub, where there is no such path:
        from the hub's cache, or pulled into it (see hub.find).
    threads: None for BITNET_NUM_THREADS, OMP_NUM_THREADS, or the physical cores that are ours.
    memory_limit: growth of the process at most, mapped files apart, bytes or "1.5GiB"; None for
        BITNET_MEMORY_LIMIT, or as much as the machine has. One slot must fit at its full length,
        the others wait until there is room for them.
    context: tokens a sequence may hold; None for what the model was trained for, 4096 at most.
    kv_dtype: "f16", "f32" or "int8" of cached keys and values. slots: sequences that run at once.
    layout: how the I2_S tensors of a GGUF lie, which the file does not say: "128x32" as nearly all
        do, "64x16" or "4row" (see docs/models.md).
    prefix_cache: keep the caches of finished sequences while the memory of all slots allows: a
        prompt that begins like one of them reads the rest only. Text is the same either way.
    prefix_folder: a folder for those that memory has no room for, and for the next process with
        this model; prefix_folder_limit: bytes of its files, those used longest ago are deleted.
    mapping: "map", weights stay in the mapped file; "prefetch", the same, and the first pass asks
        for each layer's pages while it computes the one before; "lock", the file is kept in memory
        (mlock); "copy", weights are copied into the pool, in huge pages where the system has them.

    FormatError for a damaged or unsupported file, OSError if it cannot be opened,
    MemoryLimitExceeded, before anything large is allocated, if the limit is too small, ValueError
    for an argument out of range.
    """
    n_threads, _ = cpu.threads(threads)
    check_choice("kv_dtype", kv_dtype, KV_DTYPES)
    check_choice("mapping", mapping, MAPPINGS)
    check_whole("slots", slots, MAX_SLOTS)
    limit = limit_of(memory_limit)
    path = BUNDLED_MODEL if path is None else hub.find(path)
    if path is BUNDLED_MODEL and not path.is_file():
        raise FileNotFoundError(2, "the bundled model is missing from this installation", str(path))
    folder_limit = parse_bytes("prefix_folder_limit", prefix_folder_limit)
    model = _load(path, limit, n_threads, context, kv_dtype, mapping, slots, layout, prefix_cache)
    if threads is None:
        model.threads = None  # what the machine grants, also later on
    if prefix_folder is not None:
        try:
            model.keep_prefixes(prefix_folder, folder_limit)
        except BaseException:
            model.close()
            raise
    return model


def _load(path, limit, n_threads, context, kv_dtype, mapping, slots, layout, prefix_cache):
    from ..runtime import memory_report  # last of all: growth is counted from its import

    before = memory_report.usage().anonymous
    checkpoint = open_checkpoint(path, layout=layout)
    context = context_of(checkpoint.config, context)
    planner, settings = Planner(checkpoint), Settings(context, kv_dtype, slots, n_threads, mapping)
    pool, files, model = Pool(_pool_limit(limit, planner, settings)), None, None
    try:
        tokenizer = Tokenizer.from_source(checkpoint.tokenizer_source, checkpoint.config)
        _return_free_heap()
        after = memory_report.usage().anonymous
        files = weights.of_checkpoint(checkpoint, pool=pool, n_threads=n_threads)
        if mapping == "lock":
            files.lock()
        elif mapping == "copy":
            files.copy_into(pool)
        model = Model(
            files, pool, tokenizer, n_threads, context, kv_dtype, slots, prefix_cache,
            mapping == "prefetch",
        )  # fmt: skip
        model.needs = planner.needs(settings)
        model.measured = [("tokenizer", after - before)] if before is not None else []
        if limit is not None and before is not None:
            _check_growth(limit, memory_report.usage().anonymous - before)
        return model
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold arrays of the pool
        for part in (model, files, pool):
            if part is not None:
                part.close()
        raise


def limit_of(memory_limit=None):
    """Bytes of a memory_limit, or of BITNET_MEMORY_LIMIT; None where neither is set."""
    return parse_bytes("memory_limit", memory_limit or os.environ.get("BITNET_MEMORY_LIMIT"))


def context_of(config, context=None):
    """Tokens a sequence may hold: as given if the model can, None for the default."""
    longest = config.max_position_embeddings
    context = min(longest, DEFAULT_CONTEXT) if context is None else context
    check_whole("context", context, longest)
    return context


def _pool_limit(limit, planner, settings):
    """The limit of the process's growth less what grows beside the pool."""
    if limit is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return planner.check(settings, limit)


def _return_free_heap():
    """Give the system what the tokenizer's making has left free: 20 MiB for 128k tokens (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _check_growth(limit, growth):
    """MemoryLimitExceeded if loading has taken more than the limit already."""
    if growth > limit:
        raise MemoryLimitExceeded(limit, growth)
