"""load(): a path and limits to a Model."""

import contextlib
import ctypes
import dataclasses
import gc
import logging
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import hub, weights
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.memory_plan import ASKED_LIMIT, Planner, Settings
from ..checkpoints.open_checkpoint import open_checkpoint
from ..checks import check_choice, check_number, check_whole, format_bytes, parse_bytes
from ..compute import ops
from ..errors import MemoryLimitExceeded
from ..generation.scheduler import DRAFT, NGRAM, OFF
from ..generation.snapshots import MAX_SNAPSHOTS
from ..models.config import ModelConfig
from ..models.recurrent_state import DEFAULT_SNAPSHOTS
from ..progress import Progress, silent
from ..runtime import cgroup, cpu, dispatch
from ..runtime.float_mode import in_ieee_mode
from ..runtime.pool import Pool
from ..text.chat_template import check_template
from ..text.tokenizer import Tokenizer
from .choices import (
    ACTIVATIONS,
    DEFAULT_CONTEXT,
    DEFAULT_KV_DTYPE,
    DEFAULT_LAYOUT,
    KV_DTYPES,
    MAPPINGS,
    MAX_SLOTS,
    PREFIX_FOLDER_LIMIT,
    ActivationsMode,
    KVDtype,
    Layout,
    MappingMode,
)
from .draft import check_draft
from .model import Model

log = logging.getLogger("bitnet")

CGROUP_LIMIT = "cgroup memory left"  # who has set a limit, where nobody asked for one
BUNDLED_MODEL = Path(__file__).parents[1] / "data" / "model.gguf"


@dataclass(frozen=True)
class LoadSettings:
    """The arguments of load but for the path, see there; and fair, for a server.

    fair: how the Scheduler shares steps out, see there. ValueError for a value out of range.
    """

    threads: int | None = None
    memory_limit: int | str | None = None
    context: int | None = None
    kv_dtype: KVDtype = DEFAULT_KV_DTYPE
    mapping: MappingMode = "map"
    slots: int = 1
    layout: Layout = DEFAULT_LAYOUT
    prefix_cache: bool = True
    prefix_folder: str | os.PathLike[str] | None = None
    prefix_folder_limit: int | str = PREFIX_FOLDER_LIMIT
    chat_template: str | None = None
    activations: ActivationsMode | None = None
    speculative: str | os.PathLike[str] | Model | None = None
    snapshots: int = DEFAULT_SNAPSHOTS
    progress: Progress | None = None
    fair: bool = False

    def __post_init__(self) -> None:
        check_choice("kv_dtype", self.kv_dtype, KV_DTYPES)
        check_choice("mapping", self.mapping, MAPPINGS)
        if self.activations is not None:
            check_choice("activations", self.activations, ACTIVATIONS)
        check_whole("slots", self.slots, MAX_SLOTS)
        check_number("snapshots", self.snapshots, int, 0, MAX_SNAPSHOTS)
        parse_bytes("prefix_folder_limit", self.prefix_folder_limit)
        if self.chat_template is not None:
            check_template("chat_template", self.chat_template)
        if self.prefix_folder is not None and not self.prefix_cache:
            raise ValueError("prefix_folder: nothing is kept without prefix_cache")


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    memory_limit: int | str | None = None,
    context: int | None = None,
    kv_dtype: KVDtype = DEFAULT_KV_DTYPE,
    mapping: MappingMode = "map",
    slots: int = 1,
    layout: Layout = DEFAULT_LAYOUT,
    prefix_cache: bool = True,
    prefix_folder: str | os.PathLike[str] | None = None,
    prefix_folder_limit: int | str = PREFIX_FOLDER_LIMIT,
    chat_template: str | None = None,
    activations: ActivationsMode | None = None,
    speculative: str | os.PathLike[str] | Model | None = None,
    snapshots: int = DEFAULT_SNAPSHOTS,
    progress: Progress | None = None,
) -> Model:
    """Open a model: a .gguf file or any part of a split one, a Hugging Face folder, a folder with
    one GGUF or one model in several types of it, or None for the model in the package.

    path: also ORG/NAME[@REVISION][:FILE.gguf] of the Hugging Face hub, where there is no such path:
        from the hub's cache, or pulled into it (see hub.find). Of one model in several GGUFs the
        best type is taken (see choose_file.py), with a warning that says which and why.
    threads: None for BITNET_NUM_THREADS, OMP_NUM_THREADS, or the physical cores that are ours.
    memory_limit: growth of the process at most, mapped files apart, bytes or "1.5GiB"; None for
        BITNET_MEMORY_LIMIT, or what the cgroup leaves, or as much as the machine has. One slot must
        fit at its full length, the others wait until there is room for them.
    context: tokens a sequence may hold; None for what the model was trained for, 4096 at most.
    kv_dtype: "f16", "f32" or "int8" of cached keys and values. slots: sequences that run at once.
    layout: how the I2_S tensors of a GGUF lie, which the file does not say: "128x32" as nearly all
        do, "64x16" or "4row" (see docs/models.md).
    prefix_cache: keep the caches of finished sequences while the memory of all slots allows: a
        prompt that begins like one of them reads the rest only. Text is the same either way.
    prefix_folder: a folder for those that memory has no room for, and for the next process with
        this model; prefix_folder_limit: bytes of its files, those used longest ago are deleted.
    chat_template: the text of a Jinja template, in place of the model's own.
    activations: how the inputs of linear layers are rounded in a model whose weights have scales of
        groups of columns: "int16", with a scale for each 128 columns, as good as float; "int8",
        with one for each 32, faster. None for "int16". Other models have 8 bits with one scale a
        token, as they were trained: ValueError for them.
    speculative: how tokens are drafted where a generation does not say (see Model.generate), which
        changes no text: "ngram", or a small model with the same vocabulary that drafts for this
        one, a path as above. Of a Model its files are taken, which the system holds once. What it
        needs is in this model's pool, memory_limit and report; context, kv_dtype, slots, threads,
        mapping, layout and activations are those given here, as far as it has them.
    snapshots: of a model with layers whose state cannot go back, how many states are kept for each
        slot: where the last message of a prompt ends, every 4,096 tokens of it, and of finished
        sequences; those used last. A prompt that begins like one of them reads the rest only.
    mapping: "map", weights stay in the mapped file; "prefetch", the same, and the first pass asks
        for each layer's pages while it computes the one before; "lock", the file is kept in memory
        (mlock); "copy", weights are copied into the pool, in huge pages where the system has them.
    progress: is told bytes where weights are repacked, as the first load of some types does, pulled
        or copied, as progress(what, done, total): see bitnet/progress.py.

    FormatError for a damaged or unsupported file, OSError if it cannot be opened,
    MemoryLimitExceeded, before anything large is allocated, if the limit is too small, ValueError
    for an argument out of range, or a model that cannot draft for this one.
    """
    settings = LoadSettings(
        threads=threads,
        memory_limit=memory_limit,
        context=context,
        kv_dtype=kv_dtype,
        mapping=mapping,
        slots=slots,
        layout=layout,
        prefix_cache=prefix_cache,
        prefix_folder=prefix_folder,
        prefix_folder_limit=prefix_folder_limit,
        chat_template=chat_template,
        activations=activations,
        speculative=speculative,
        snapshots=snapshots,
        progress=progress,
    )
    return load_model(path, settings)


def load_model(path: str | os.PathLike[str] | None, settings: LoadSettings) -> Model:
    """The Model of a path as load takes it, with these settings."""
    return _load_within(limit_of(settings.memory_limit), path, settings)


def load_with_embedding(
    path: str | os.PathLike[str] | None,
    settings: LoadSettings,
    embedding_path: str | os.PathLike[str],
) -> tuple[Model, Model]:
    """The same of a path, and a model of embeddings beside it, within one memory limit.

    The embedding model has its own default context and prefix_cache=False, and takes what its plan
    says at most; the other one has what that leaves. ValueError if it is no embedding model.
    """
    limit = limit_of(settings.memory_limit)
    beside = dataclasses.replace(
        settings,
        context=None,
        chat_template=None,
        activations=None,
        layout=LoadSettings.layout,
        prefix_cache=False,
        prefix_folder=None,
        speculative=None,
    )
    second = _load_within(limit, embedding_path, beside, as_planned=True)
    try:
        if second.config.pooling is None:
            raise ValueError(
                f"{second.path.name}: {second.config.architecture} is no embedding model"
            )
        if limit is not None:
            planned = sum(need.nbytes for need in second.needs if need.where != "files")
            limit = max(1, limit[0] - planned), f"{limit[1]} without the embedding model's"
        return _load_within(limit, path, settings), second
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        _close_in_any_case(second)
        raise


@in_ieee_mode
def _load_within(
    limit: tuple[int, str] | None,
    path: str | os.PathLike[str] | None,
    settings: LoadSettings,
    *,
    as_planned: bool = False,
) -> Model:
    dispatch.check()
    n_threads, why = cpu.threads(settings.threads)
    n_threads = ops.startable_threads(n_threads)
    file = BUNDLED_MODEL if path is None else hub.find(path, settings.progress or silent)
    if file is BUNDLED_MODEL and not file.is_file():
        raise FileNotFoundError(2, "the bundled model is missing from this installation", str(file))
    draft = draft_path(settings.speculative, settings.progress or silent)
    follows_machine = why not in cpu.ASKED
    return _load(file, draft, settings, limit, n_threads, follows_machine, as_planned)


def draft_path(
    speculative: str | os.PathLike[str] | Model | None, progress: Progress = silent
) -> Path | None:
    """The path of the small model that load's argument names; None where it names none.

    ValueError for what can name none, and for what only Model.generate takes.
    """
    if speculative is None or speculative == NGRAM:
        return None
    if speculative in ("", DRAFT, OFF) or isinstance(speculative, bytes | int | float):
        raise ValueError(f"speculative: {speculative!r} (a model, {NGRAM!r} or None)")
    return speculative.path if isinstance(speculative, Model) else hub.find(speculative, progress)


def _load(
    file: Path,
    draft_file: Path | None,
    settings: LoadSettings,
    limit: tuple[int, str] | None,
    n_threads: int,
    follows_machine: bool,
    as_planned: bool,
) -> Model:
    from ..runtime import memory_report  # last of all: growth is counted from its import

    before = memory_report.usage().anonymous
    checkpoint = open_checkpoint(file, layout=settings.layout)
    draft = None if draft_file is None else open_checkpoint(draft_file, layout=settings.layout)
    context = context_of(checkpoint.config, settings.context)
    plan = Settings(
        context,
        settings.kv_dtype,
        settings.slots,
        n_threads,
        settings.mapping,
        settings.activations,
        settings.snapshots if settings.prefix_cache else 0,
    )
    planner = Planner(checkpoint, draft)
    if as_planned and limit is not None:
        limit = min(limit[0], planner.private(plan)), limit[1]
    pool, model = Pool(_pool_limit(limit, planner, plan)), None
    opened: list[weights.Weights] = []
    try:
        vocabulary = checkpoint.tokenizer_source.with_template(settings.chat_template)
        tokenizer = Tokenizer.from_source(vocabulary, checkpoint.config)
        _return_free_heap()
        after = memory_report.usage().anonymous
        grown = None if before is None or after is None else after - before
        if draft is not None:
            check_draft(checkpoint, tokenizer, draft)
            _return_free_heap()
        for source in (checkpoint, draft):
            if source is not None:
                files = _weights(source, pool, n_threads, settings, is_draft=source is draft)
                opened.append(files)
                if settings.mapping == "lock":
                    files.lock()
                elif settings.mapping == "copy":
                    files.copy_into(pool, settings.progress or silent)
        model = Model(
            opened[0],
            pool,
            tokenizer,
            plan,
            prefix_cache=settings.prefix_cache,
            prefix_folder=settings.prefix_folder,
            prefix_folder_limit=parse_bytes("prefix_folder_limit", settings.prefix_folder_limit),
            fair=settings.fair,
            draft=opened[1] if draft is not None else None,
            speculative=_method(settings, draft),
            follows_machine=follows_machine,
            needs=planner.needs(plan),
            measured=[] if grown is None else [("tokenizer", grown)],
        )
        if limit is not None and before is not None:
            _check_growth(*limit, (memory_report.usage().anonymous or 0) - before)
        return model
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold arrays of the pool
        for part in (model, *opened, pool):
            if part is not None:
                _close_in_any_case(part)
        raise


def _method(settings: LoadSettings, draft: Checkpoint | None) -> str | None:
    """How drafts are made where a generation does not say."""
    if draft is not None:
        return DRAFT
    return None if settings.speculative is None else NGRAM


def _weights(
    checkpoint: Checkpoint, pool: Pool, n_threads: int, settings: LoadSettings, is_draft: bool
) -> weights.Weights:
    """The weights of the model, or of the small one, for which activations may be no choice."""
    activations = settings.activations
    if is_draft and not checkpoint.has_group_scales:
        activations = None
    return weights.of_checkpoint(
        checkpoint,
        pool=pool,
        n_threads=n_threads,
        activations=activations,
        progress=settings.progress or silent,
    )


def _close_in_any_case(part: Model | weights.Weights | Pool) -> None:
    """Close what an error has left behind, which that error shall not be hidden by.

    Views of the pool's memory may be alive in cycles, or in frames of the error that go on
    running. Then the memory goes with them.
    """
    try:
        part.close()
    except BufferError:
        gc.collect()
        with contextlib.suppress(BufferError):
            part.close()


def limit_of(memory_limit: int | str | None = None) -> tuple[int, str] | None:
    """(bytes, who has set it) of a memory_limit, of BITNET_MEMORY_LIMIT, or of what the cgroups
    leave; None where there is no limit."""
    asked = parse_bytes(ASKED_LIMIT, memory_limit or None)
    if asked is None:
        set_for_all = os.environ.get("BITNET_MEMORY_LIMIT") or None
        asked = parse_bytes("BITNET_MEMORY_LIMIT", set_for_all)
    left = cgroup.memory_left()
    if asked is None:
        return None if left is None else (left, CGROUP_LIMIT)
    if left is not None and asked > left:
        shown = format_bytes(asked), format_bytes(left)
        log.warning("memory_limit %s is more than the %s that the cgroup leaves", *shown)
    return asked, ASKED_LIMIT


def context_of(config: ModelConfig, context: int | None = None) -> int:
    """Tokens a sequence may hold: as given if the model can, None for the default."""
    longest = config.max_position_embeddings
    context = min(longest, DEFAULT_CONTEXT) if context is None else context
    check_whole("context", context, longest)
    return context


def _pool_limit(limit: tuple[int, str] | None, planner: Planner, settings: Settings) -> int:
    """The limit of the process's growth less what grows beside the pool."""
    return cgroup.memory() if limit is None else planner.check(settings, *limit)


def _return_free_heap() -> None:
    """Give the system what making the tokenizer has left free: 20 MiB for 128k tokens (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _check_growth(limit: int, setter: str, growth: int) -> None:
    """MemoryLimitExceeded if loading has taken more than the limit already."""
    if growth > limit:
        raise MemoryLimitExceeded(limit, growth, setter=setter)
