"""What computes for a Model: its transformer and scheduler, with those of a model that drafts."""

from ..checkpoints.memory_plan import Settings, settings_of_draft
from ..checkpoints.weights import Weights
from ..generation.draft_model import DraftModel
from ..generation.prefix_cache import PrefixCache
from ..generation.scheduler import Scheduler
from ..generation.snapshots import snapshot_places
from ..generation.token_ids import TokenIds
from ..models.config import ModelConfig
from ..models.transformer import Transformer
from ..runtime.pool import Pool
from ..text.tokenizer import Tokenizer


def new_scheduler(
    weights: Weights,
    draft: Weights | None,
    pool: Pool,
    settings: Settings,
    *,
    prefix_cache: bool,
    fair: bool,
) -> Scheduler:
    """The Scheduler of a model. draft: of the small model that drafts for it, or None.

    FormatError where the small one's weights are damaged: it runs once.
    """
    draft_model = None
    if draft is not None:
        small = settings_of_draft(settings, draft.config, draft.has_group_scales)
        draft_model = DraftModel(
            _transformer(draft, pool, small),
            slots=settings.slots,
            kv_dtype=settings.kv_dtype,
            prefix_cache=PrefixCache() if prefix_cache else None,
        )
    return Scheduler(
        _transformer(weights, pool, settings),
        slots=settings.slots,
        kv_dtype=settings.kv_dtype,
        prefix_cache=PrefixCache() if prefix_cache else None,
        fair=fair,
        draft_model=draft_model,
        snapshots=settings.snapshots,
    )


def snapshots_of(
    token_ids: TokenIds, config: ModelConfig, tokenizer: Tokenizer | None, scheduler: Scheduler
) -> tuple[int, ...]:
    """Where states of a prompt are kept, of a model whose state cannot go back; else nowhere."""
    if config.delta_net is None or not scheduler.snapshots:
        return ()
    opener = None if tokenizer is None else tokenizer.reply_opener
    return snapshot_places(list(token_ids), opener)


def _transformer(weights: Weights, pool: Pool, settings: Settings) -> Transformer:
    return Transformer(
        weights,
        pool,
        n_threads=settings.threads,
        context=settings.context,
        max_sequences=settings.slots,
        prefetch=settings.mapping == "prefetch",
    )
