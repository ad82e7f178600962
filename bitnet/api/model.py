"""A loaded model as users see it: generate, stream, chat, score, branch, account for memory."""

import contextlib
import dataclasses
import gc
import os
import weakref
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, Unpack, overload

import numpy as np

from ..checkpoints.memory_plan import Need, Settings
from ..checkpoints.weights import Weights
from ..checks import check_choice, check_whole
from ..errors import ContextFull, FormatError
from ..generation.detokenizer import Detokenizer
from ..generation.grammar import Grammars
from ..generation.request import Completion, Constraint, Request
from ..generation.sampling import make_sampler
from ..generation.scheduler import Scheduler
from ..generation.session import Session
from ..generation.stopping import StopConditions
from ..generation.token_ids import TokenIds
from ..models.config import ModelConfig
from ..progress import Steps, finish
from ..runtime import cpu
from ..runtime.float_mode import in_ieee_mode
from ..runtime.pool import Pool, PoolStats
from ..text.chat_template import TemplateValues
from ..text.tokenizer import Tokenizer
from .asynchronous import Asynchronous
from .engine import new_scheduler, snapshots_of
from .granted_threads import GrantedThreads
from .options import GenerationOptions, form_of, hooks_of, named_options, sampling_of, stopping_of
from .scores import Prompt
from .stream import Messages, Stream

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from ..runtime.memory_report import MemoryReport

_models: weakref.WeakSet["Model"] = weakref.WeakSet()  # those that are open


def _after_fork() -> None:
    for model in list(_models):
        model._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Model(Asynchronous):
    """A loaded model; made by load, a context manager. May be used from several threads.

    config: ModelConfig. path: of the file or folder. context: tokens a sequence may hold.
    weights: the Weights, for measurements. draft: those of the small model that drafts, or None.
    speculative: how drafts are made where a generation does not say. needs: what was planned.
    measured: [(name, bytes)] of what the process grew by, measured at its loading.
    """

    path: Path
    config: ModelConfig
    context: int

    def __init__(
        self,
        weights: Weights,
        pool: Pool,
        tokenizer: Tokenizer | None,
        settings: Settings,
        *,
        prefix_cache: bool = True,
        prefix_folder: str | os.PathLike[str] | None = None,
        prefix_folder_limit: int = 0,
        fair: bool = False,
        draft: Weights | None = None,
        speculative: str | None = None,
        follows_machine: bool = False,
        needs: Sequence[Need] = (),
        measured: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.path, self.config, self.context = weights.path, weights.config, settings.context
        self.weights, self.needs, self.measured = weights, needs, measured
        self.draft, self.speculative = draft, speculative
        self._pool, self._tokenizer = pool, tokenizer
        self._scheduler: Scheduler | None = new_scheduler(
            weights, draft, pool, settings, prefix_cache=prefix_cache, fair=fair
        )
        if prefix_folder is not None:
            fingerprint = weights.fingerprint()
            self.scheduler.keep_prefixes(prefix_folder, prefix_folder_limit, fingerprint)
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._worker: ThreadPoolExecutor | None = None
        self._grammars: Grammars | None = None  # made when it is first needed
        self._is_forked = False  # threads that were not forked may have views, and never drop them
        self._granted = GrantedThreads(settings.threads if follows_machine else None)
        _models.add(self)

    def __repr__(self) -> str:
        closed = ", closed" if self._scheduler is None else ""
        return (
            f"<Model {self.path.name}: {self.config.architecture}, context {self.context}{closed}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a Model is of its process: load it there, bitnet.load({str(self.path)!r})"
        )

    # ---------------------------------------------------------------------------------- generation
    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str too
        self, prompt: Prompt, *, parse_special: bool = False, **options: Unpack[GenerationOptions]
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        *,
        parse_special: bool = False,
        errors: Literal["raise"] = "raise",
        **options: Unpack[GenerationOptions],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        *,
        parse_special: bool = False,
        errors: Literal["return"],
        **options: Unpack[GenerationOptions],
    ) -> list[Completion | BaseException]: ...

    @named_options
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        parse_special: bool = False,
        errors: Literal["raise", "return"] = "raise",
        **options: Unpack[GenerationOptions],
    ) -> Completion | list[Completion] | list[Completion | BaseException]:
        """Continue a prompt, or each of a list of prompts: a Completion, or a list of them.

        prompt: text, or token ids as they are. parse_special: special tokens written in the text
        are those tokens. The prompts of a list share the model's slots. errors: "return" puts what
        is wrong with a prompt of a list, as ContextFull, in the place of its Completion; otherwise
        the first error ends all.

        max_tokens=256; temperature, top_k, top_p: None for the model's own settings if it has any,
            else 0, the most likely token; min_p=0; repetition_penalty=1; logit_bias={id: number};
            presence_penalty=0, frequency_penalty=0: see sampling.Sampling.
        seed=None: a new one, which the Completion tells. The same seed gives the same text in any
            batch, with any number of threads, on any CPU.
        stop: a string or several, before which the text ends.
        context_end="stop": what happens when the context is full; "error" for ContextFull; "window"
            to go on in the same memory: a token then sees the first 4 and the latest ones, which
            are at least context - 255 (Xiao et al. 2023). The context must be at least 257.
        min_tokens=0: so many before the text may end. ignore_eos=False: whether it goes on past the
            model's end tokens. stop_token_ids=(): more tokens that end it.
        json_schema, grammar, regex, choices: one of them, which the text follows unless max_tokens
            cuts it: a JSON schema (objects have the properties that are listed and no others,
            unless it says otherwise), a grammar in llguidance's Lark or llama.cpp's GBNF, an
            expression of Rust's crate regex, texts to choose from. They need the extra `grammar`;
            GrammarError for what cannot be followed.
        speculative=None: what load was told. "ngram" drafts tokens by prompt lookup (Saxena 2023)
            and checks several in one step: the same text, sooner where it repeats itself or the
            prompt. "draft": the small model that load was given drafts them. "off": neither.
        logits_processors, stopping: functions of your own, see generation.hooks.Hooks.
        """
        found: Completion | list[Completion] | list[Completion | BaseException]
        found = finish(self._generation_steps(prompt, parse_special, errors, options))
        return found

    def _generation_steps(
        self, prompt: Any, parse_special: bool, errors: str, options: GenerationOptions
    ) -> Steps[Any]:
        one = isinstance(prompt, str) or (len(prompt) and isinstance(prompt[0], int | np.integer))
        check_choice("errors", errors, ("raise", "return"))
        returns = errors == "return" and not one
        prompts: Any = [prompt] if one else prompt
        parts = [self._request_of(p, parse_special, options, returns) for p in prompts]
        requests = [part for part in parts if isinstance(part, Request)]
        yield from self.scheduler.steps(requests, stop_at_error=not returns)
        results: list[Any] = [p.outcome if isinstance(p, Request) else p for p in parts]
        return results[0] if one else results

    def _request_of(
        self, prompt: Prompt, parse_special: bool, options: GenerationOptions, returns: bool
    ) -> Request | BaseException:
        """A prompt's request, or, if that is to be returned, what is wrong with the prompt."""
        try:
            ids = self.encode_prompt(prompt, parse_special)
        except (ValueError, ContextFull) as error:
            if not returns:
                raise
            return error
        return self.request(ids, **options)

    @property
    def grammars(self) -> Grammars:
        """What compiles the grammars that texts are to follow."""
        if self._grammars is None:
            ends = {*self.tokenizer.eos_ids, *self.config.eos_token_ids}
            self._grammars = Grammars(self.tokenizer, self.config.vocab_size, ends)
        return self._grammars

    def _constraint(self, options: GenerationOptions) -> Constraint | None:
        """The constraint that options ask for, a new one for each sequence."""
        form = form_of(options)
        if form is None:
            return None
        name, value = form
        return self.grammars.of(name, value, name)()

    @named_options
    def stream(
        self, prompt: Prompt, *, parse_special: bool = False, **options: Unpack[GenerationOptions]
    ) -> Stream:
        """The same for one prompt as a Stream: an iterator of the text as it comes."""
        return Stream(self.scheduler, self._prompt_request(prompt, parse_special, options))

    def _prompt_request(
        self, prompt: Prompt, parse_special: bool, options: GenerationOptions
    ) -> Request:
        return self.request(self.encode_prompt(prompt, parse_special), **options)

    @named_options
    def chat(
        self,
        messages: Messages,
        *,
        chat_template_kwargs: TemplateValues | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Completion:
        """The model's reply to [{"role": "user", "content": text}, ...], as a Completion.

        chat_template_kwargs: values for names that the template reads, as enable_thinking=False.
        Options as of generate. Special tokens in a content are text. TemplateError if the model has
        no chat template or its template fails.
        """
        return finish(self._chat_steps(messages, chat_template_kwargs, options))

    def _chat_steps(
        self, messages: Messages, values: TemplateValues | None, options: GenerationOptions
    ) -> Steps[Completion]:
        request = self._chat_request(messages, values, options)
        yield from self.scheduler.steps([request])
        return request.result()

    def _chat_request(
        self, messages: Messages, values: TemplateValues | None, options: GenerationOptions
    ) -> Request:
        may_think = form_of(options) is None  # what it has to follow begins with the answer
        return self.request(self.encode_chat(messages, values, may_think=may_think), **options)

    @named_options
    def chat_stream(
        self,
        messages: Messages,
        *,
        chat_template_kwargs: TemplateValues | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream:
        """The same as a Stream."""
        request = self._chat_request(messages, chat_template_kwargs, options)
        return Stream(self.scheduler, request)

    # ------------------------------------------------------------------- for those who schedule
    @in_ieee_mode
    def encode_prompt(self, prompt: Prompt, parse_special: bool = False) -> list[int]:
        """The token ids of a prompt, see generate. ContextFull where it is longer than the context.

        ValueError for token ids that are none of the vocabulary's.
        """
        if isinstance(prompt, str):
            encode = self.tokenizer.encode
            prompt = encode(prompt, parse_special=parse_special, limit=self.context)
        return self._token_ids(prompt)

    @in_ieee_mode
    def encode_chat(
        self,
        messages: Messages,
        chat_template_kwargs: TemplateValues | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        may_think: bool = True,
    ) -> list[int]:
        """The token ids of a conversation up to where the reply begins, see chat.

        tools: for a template that writes them itself (ChatTemplate.tool_form).
        add_generation_prompt: whether it ends with the beginning of a reply.
        continue_final_message: whether it ends within the last message, which the reply goes on
        with. may_think: False has the template ask for an answer at once, where it can and
        chat_template_kwargs do not say.
        ContextFull, before it is encoded, for a text that is certainly longer than the context.
        """
        values, template = chat_template_kwargs, self.tokenizer.chat_template
        thinks = not may_think and template is not None and template.thinks
        if template is not None and thinks and "enable_thinking" in template.names:
            values = {"enable_thinking": False, **(values or {})}
        return self.tokenizer.chat(
            messages, add_generation_prompt, self.context, values, tools, continue_final_message
        )

    @named_options
    @in_ieee_mode
    def request(
        self,
        token_ids: TokenIds,
        *,
        n_logprobs: int | None = None,
        constraint: Constraint | None = None,
        cache_prompt: bool = True,
        client: Hashable = None,
        **options: Unpack[GenerationOptions],
    ) -> Request:
        """A generation that is checked and not submitted yet, for Scheduler.submit.

        n_logprobs: of how many of the likeliest tokens the log probabilities are wanted at each
        place, beside the chosen one's; None for none at all. constraint: what says which tokens
        may come. cache_prompt: whether a beginning that was read before need not be read again.
        client: see generation.request.Request. Options and errors as of generate.
        """
        config, scheduler = self.config, self.scheduler
        if config.pooling is not None:
            raise ValueError(f"{self.path.name}: an embedding model (embed works, not generation)")
        sampler = make_sampler(sampling_of(options, config), config.vocab_size)
        stopping, detokenizer = stopping_of(options, frozenset(config.eos_token_ids)), None
        if self._tokenizer is not None or stopping.stop:
            eos_ids = stopping.eos_ids | frozenset(self.tokenizer.eos_ids)
            stopping = dataclasses.replace(stopping, eos_ids=eos_ids)
            detokenizer = Detokenizer(self.tokenizer.stream(), stopping.stop)
        constraint = constraint or self._constraint(options)
        if constraint is not None and stopping.ignore_eos:
            raise ValueError("ignore_eos: not with a grammar, which the end token ends")
        method = options.get("speculative")
        request = Request(
            token_ids,
            sampler,
            stopping,
            detokenizer,
            n_logprobs=n_logprobs,
            drafts=scheduler.new_drafts(self.speculative if method is None else method),
            constraint=constraint,
            reuses=cache_prompt,
            hooks=hooks_of(options),
            client=client,
            snapshots=snapshots_of(token_ids, config, self._tokenizer, scheduler),
        )
        scheduler.check(request)
        self._follow_machine()
        return request

    @property
    def scheduler(self) -> Scheduler:
        """What runs the requests. ValueError where the model is closed."""
        return self._open()

    def _open(self) -> Scheduler:
        if self._scheduler is None:
            raise ValueError("the model is closed")
        return self._scheduler

    def pool_stats(self) -> PoolStats:
        """What the pool holds at this moment; takes microseconds."""
        return self._pool.stats()

    # ------------------------------------------------------------------------------------ the rest
    def session(
        self, capacity: int | None = None, context_end: Literal["error", "window"] = "error"
    ) -> Session:
        """A Session: one sequence with its own cache of ``capacity`` tokens (None: the context).

        context_end: what feeding it more ends in: "error", ContextFull, or "window" (see generate).
        """
        check_whole("capacity", self.context if capacity is None else capacity, self.context)
        check_choice("context_end", context_end, ("error", "window"))
        scheduler = self.scheduler
        self._follow_machine()
        sinks = StopConditions(context_end=context_end).n_sinks
        state = scheduler.transformer.new_state(capacity, scheduler.kv_dtype, sinks)
        return Session(scheduler, state, self._sessions, self.weights.fingerprint)

    @property
    def tokenizer(self) -> Tokenizer:
        """The Tokenizer. FormatError where the model came without one: token ids still work."""
        self._open()
        if self._tokenizer is None:
            raise FormatError(self.path, "tokenizer", "missing", "only token ids can be used")
        return self._tokenizer

    @property
    def threads(self) -> int:
        """Threads of every operation. May be set at any time; takes effect with the next step.

        None: what environment or machine grant, as load asks them. Such a number is looked at again
        at the beginning of a generation or session, once a second at most: where affinity or cgroup
        quota have become smaller, fewer are used until they grow again.
        """
        return self.scheduler.transformer.n_threads

    @threads.setter
    def threads(self, n: int | None) -> None:
        n, why = cpu.threads(n)
        self.scheduler.use_threads(n)
        self._granted = GrantedThreads(None if why in cpu.ASKED else n)

    def _follow_machine(self) -> None:
        """Use as many threads as the machine grants now, if the user did not choose the number."""
        n = None if self.scheduler.is_inside else self._granted.look()
        if n is not None and n != self.threads:
            self.scheduler.use_threads(n)

    def _after_fork(self) -> None:
        """In the child of a fork: threads that waited or worked for us are not there."""
        self._worker, self._is_forked = None, True
        if self._scheduler is not None:
            self._scheduler.after_fork()

    def memory(self) -> "MemoryReport":
        """The MemoryReport: mapped files, pool by purpose, what the OS says. Print it."""
        from ..runtime import memory_report

        self._open()
        planned: dict[str, int] = {}  # a model that drafts has needs of the same purposes
        for need in self.needs:
            planned[need.purpose] = planned.get(need.purpose, 0) + need.nbytes
        mappings = [m for weights in self._all_weights() for m in weights.mappings()]
        return memory_report.measure(mappings, self._pool, self.measured, planned)

    def close(self) -> None:
        """Cancel what runs and free everything. May be repeated.

        Another thread's step is waited for. Called inside a step, as by a signal handler between
        two layers, it is carried out when the step has ended. BufferError while logits of a session
        are alive, or one is saved: they lie in the model's memory. Close it again then.
        """
        scheduler = self._scheduler
        if scheduler is not None and scheduler.is_inside:
            scheduler.defer(self._close_later)
            return
        if scheduler is not None:
            scheduler.close()
        if self._grammars is not None:
            self._grammars.close()
        for session in list(self._sessions):
            session.close()
        # Its thread ends with the worker, whose shutdown may wait for what a handler interrupts.
        self._scheduler = self._worker = self._tokenizer = None
        for weights in self._all_weights():
            weights.close()
        try:
            self._pool.close()
        except BufferError:
            gc.collect()  # tracebacks of errors that are over hold arrays in cycles
            if not self._is_forked:
                self._pool.close()

    def _close_later(self) -> None:
        """Close after a step. What it gave, as a session's logits, keeps the pool's memory."""
        with contextlib.suppress(BufferError):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.close()
        except BufferError:
            if error is None:
                raise
            # the frames of the error's traceback hold arrays; the pool goes with them

    def _async_worker(self) -> "ThreadPoolExecutor":
        """One thread for all asynchronous calls: each thread that runs kernels has its own team."""
        if self._worker is None:
            from concurrent.futures import ThreadPoolExecutor

            self._worker = ThreadPoolExecutor(1, thread_name_prefix="bitnet")
        return self._worker

    def _all_weights(self) -> list[Weights]:
        return [self.weights] if self.draft is None else [self.weights, self.draft]
