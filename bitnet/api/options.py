"""The keyword arguments of generation, which generate, stream, chat and others have in common.

They are those of Sampling and StopConditions (where their bounds and defaults stand),
`speculative`, those of FORMS, and the caller's functions of Hooks. tests/api/test_types.py holds
the names and types here against them.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypedDict, TypeVar, cast

from ..generation.hooks import ChangeLogits, Hooks, ShouldStop
from ..generation.sampling_fields import SAMPLING_FIELDS, Sampling
from ..generation.stopping import StopConditions
from ..models.config import ModelConfig

F = TypeVar("F", bound=Callable[..., Any])


class GenerationOptions(TypedDict, total=False):
    """Keyword arguments of Model.generate, which says what they mean."""

    max_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    logit_bias: Mapping[int, float] | None
    presence_penalty: float
    frequency_penalty: float
    context_end: Literal["stop", "error", "window"]
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: Sequence[int]
    speculative: Literal["ngram", "draft", "off"] | None
    json_schema: Mapping[str, Any] | bool | None
    grammar: str | None
    regex: str | None
    choices: Sequence[str] | None
    logits_processors: Sequence[ChangeLogits] | None
    stopping: ShouldStop | None


# What a text may have to follow, one of them at a time: see Model.generate
FORMS = ("json_schema", "grammar", "regex", "choices")
_STOPPING = ("max_tokens", "context_end", "min_tokens", "ignore_eos", "stop_token_ids")

# name -> what it is where it is not given; None leaves it to the model or the one who makes it
DEFAULTS: dict[str, object] = {
    **dict.fromkeys(GenerationOptions.__annotations__),
    **{f.name: f.default for f in SAMPLING_FIELDS if not f.is_models},
    "stop": StopConditions.stop,
    **{name: getattr(StopConditions, name) for name in _STOPPING},
}


def named_options(method: F) -> F:
    """Give a method that ends in **options: Unpack[GenerationOptions] their names at run time.

    A wrong one is a TypeError that names the method, as of any Python function, and help() and
    inspect.signature show all of them.
    """
    signature = inspect.signature(method)
    *own, _ = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    common = [
        inspect.Parameter(name, keyword, default=DEFAULTS[name], annotation=annotation)
        for name, annotation in GenerationOptions.__annotations__.items()
    ]
    names = {parameter.name for parameter in [*own, *common]}

    @functools.wraps(method)
    def checked(*arguments: Any, **keywords: Any) -> Any:
        for name in keywords:
            if name not in names:
                raise TypeError(_unexpected(method.__qualname__, name, names))
        return method(*arguments, **keywords)

    shown: Any = checked
    if inspect.iscoroutinefunction(method) and hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(shown)  # since Python 3.12
    shown.__signature__ = signature.replace(parameters=[*own, *common])
    return cast(F, shown)


def _unexpected(function: str, name: str, names: Iterable[str]) -> str:
    """Python's own words, as of 3.13."""
    close = difflib.get_close_matches(name, names, 1)
    hint = f". Did you mean {close[0]!r}?" if close else ""
    return f"{function}() got an unexpected keyword argument {name!r}{hint}"


def sampling_of(options: GenerationOptions, config: ModelConfig) -> Sampling:
    """The Sampling that options ask for; what is the model's to say, and is not given, is its."""
    names = {f.name for f in fields(Sampling)}
    given: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    given["logit_bias"] = given.get("logit_bias") or {}
    for f in SAMPLING_FIELDS:
        if f.is_models and given.get(f.name) is None:
            given[f.name] = getattr(config, f.name) if config.do_sample else f.default
    return Sampling(**given)


def stopping_of(options: GenerationOptions, eos_ids: frozenset[int]) -> StopConditions:
    """The StopConditions that options ask for, and these end tokens."""
    given: dict[str, Any] = {name: value for name, value in options.items() if name in _STOPPING}
    stop = options.get("stop")
    if stop is not None and not isinstance(stop, Sequence):
        raise ValueError(f"stop: {stop!r} (a string, or a list of strings)")
    stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return StopConditions(stop=stop, eos_ids=eos_ids, **given)


def hooks_of(options: GenerationOptions) -> Hooks:
    """The functions of the caller's own."""
    processors = options.get("logits_processors")
    if not isinstance(processors, Sequence | None):
        raise ValueError(f"logits_processors: {processors!r} (a list of functions)")
    return Hooks(tuple(processors or ()), options.get("stopping"))


def form_of(options: GenerationOptions) -> tuple[str, Any] | None:
    """(name, value) of the one of FORMS that options ask for. ValueError for several."""
    values: Mapping[str, Any] = options
    given = [(name, values[name]) for name in FORMS if values.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"{given[1][0]}: not together with {given[0][0]}")
    return given[0] if given else None
