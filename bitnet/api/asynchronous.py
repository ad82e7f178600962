"""The asynchronous methods of a Model: named as the others, with an a in front."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from ..generation.request import Completion, Request
from ..progress import Steps
from ..runtime.float_mode import in_ieee_mode
from ..text.chat_template import TemplateValues
from .options import GenerationOptions, named_options
from .scores import Prompt, Scores
from .stream import Messages, deltas_in

if TYPE_CHECKING:
    from concurrent.futures import Executor

T = TypeVar("T")


class Asynchronous(Scores):
    """Each computes in one thread of the model's own, a step at a time, so that those that run at
    once share the model's slots, and the event loop goes on. Prompts are encoded there too.

    Cancelling a task ends its work behind the step that is being computed, and frees its memory
    before the task is over. Errors are those of the synchronous methods.
    """

    def _generation_steps(
        self, prompt: Any, parse_special: bool, errors: str, options: GenerationOptions
    ) -> Steps[Any]:
        raise NotImplementedError

    def _chat_steps(
        self, messages: Messages, values: TemplateValues | None, options: GenerationOptions
    ) -> Steps[Completion]:
        raise NotImplementedError

    def _prompt_request(
        self, prompt: Prompt, parse_special: bool, options: GenerationOptions
    ) -> Request:
        raise NotImplementedError

    def _chat_request(
        self, messages: Messages, values: TemplateValues | None, options: GenerationOptions
    ) -> Request:
        raise NotImplementedError

    def _async_worker(self) -> "Executor":
        raise NotImplementedError

    @overload
    async def agenerate(  # type: ignore[overload-overlap]  # a str is a sequence of str too
        self, prompt: Prompt, *, parse_special: bool = False, **options: Unpack[GenerationOptions]
    ) -> Completion: ...

    @overload
    async def agenerate(
        self,
        prompt: Sequence[Prompt],
        *,
        parse_special: bool = False,
        errors: Literal["raise"] = "raise",
        **options: Unpack[GenerationOptions],
    ) -> list[Completion]: ...

    @overload
    async def agenerate(
        self,
        prompt: Sequence[Prompt],
        *,
        parse_special: bool = False,
        errors: Literal["return"],
        **options: Unpack[GenerationOptions],
    ) -> list[Completion | BaseException]: ...

    @named_options
    async def agenerate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        parse_special: bool = False,
        errors: Literal["raise", "return"] = "raise",
        **options: Unpack[GenerationOptions],
    ) -> Completion | list[Completion] | list[Completion | BaseException]:
        """As generate: a Completion, or a list of them."""
        found: Completion | list[Completion] | list[Completion | BaseException]
        found = await self._finish(self._generation_steps(prompt, parse_special, errors, options))
        return found

    @named_options
    async def astream(
        self, prompt: Prompt, *, parse_special: bool = False, **options: Unpack[GenerationOptions]
    ) -> AsyncGenerator[str, None]:
        """As stream: the text as it comes. Leaving it early (aclose) cancels generation."""
        make = self._deltas(lambda: self._prompt_request(prompt, parse_special, options))
        async with contextlib.aclosing(make) as text:
            async for delta in text:
                yield delta

    @named_options
    async def achat(
        self,
        messages: Messages,
        *,
        chat_template_kwargs: TemplateValues | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Completion:
        """As chat: the model's reply, as a Completion."""
        return await self._finish(self._chat_steps(messages, chat_template_kwargs, options))

    @named_options
    async def achat_stream(
        self,
        messages: Messages,
        *,
        chat_template_kwargs: TemplateValues | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncGenerator[str, None]:
        """As chat_stream: the text as it comes. Leaving it early (aclose) cancels generation."""
        make = self._deltas(lambda: self._chat_request(messages, chat_template_kwargs, options))
        async with contextlib.aclosing(make) as text:
            async for delta in text:
                yield delta

    @overload
    async def aloglikelihood(self, context: Prompt, continuation: Prompt) -> tuple[float, bool]: ...

    @overload
    async def aloglikelihood(
        self, context: Iterable[tuple[Prompt, Prompt]]
    ) -> list[tuple[float, bool]]: ...

    async def aloglikelihood(self, context: Any, continuation: Any = None) -> Any:
        """As loglikelihood: (log of the probability, whether it is greedy), or a list of them."""
        return await self._finish(self._loglikelihood_steps(context, continuation))

    async def aembed(
        self, texts: str | Sequence[str], *, prompt_name: str | None = None, prompt: str = ""
    ) -> NDArray[np.float32]:
        """As embed: float32 (hidden_size,), or (n, hidden_size) of a list of texts."""
        return await self._finish(self._embed_steps(texts, prompt_name, prompt))

    async def _deltas(self, make: Callable[[], Request]) -> AsyncGenerator[str, None]:
        """The text deltas of a request, which is made in the worker too."""
        import asyncio  # 60 ms, for those who have imported it already

        scheduler, worker = self.scheduler, self._async_worker()
        scheduler.check_outside()
        request = await asyncio.get_running_loop().run_in_executor(worker, make)
        async with contextlib.aclosing(deltas_in(worker, scheduler, request)) as text:
            async for delta in text:
                yield delta

    async def _finish(self, steps: Steps[T]) -> T:
        """What the steps return, each done in the worker; those of other tasks come between."""
        import asyncio

        self.scheduler.check_outside()
        loop, worker = asyncio.get_running_loop(), self._async_worker()
        try:
            while (end := await loop.run_in_executor(worker, _advance, steps)) is None:
                pass
        except BaseException:
            # Behind the step that a cancelled task has left running. Cancelled again, it is done
            # all the same.
            await asyncio.shield(loop.run_in_executor(worker, steps.close))
            raise
        return end[0]


@in_ieee_mode
def _advance(steps: Steps[T]) -> tuple[T] | None:
    """Do a step; (what all have returned,) at their end."""
    try:
        next(steps)
    except StopIteration as end:
        return (end.value,)
    return None
