"""The text of one generation as it comes."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Self

from ..generation.request import Completion, Request
from ..generation.scheduler import Scheduler

if TYPE_CHECKING:
    from concurrent.futures import Executor

Messages = Iterable[Mapping[str, Any]]  # of a chat: [{"role": "user", "content": text}, ...]


class Stream:
    """An iterator of the text deltas of one generation. Leaving it early (close) cancels that.

    completion: the Completion once the text is complete, None before.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        self._request, self._deltas = request, scheduler.stream(request)

    def __repr__(self) -> str:
        error = self._request.error
        end = type(error).__name__ if error else "complete" if self.completion else "not complete"
        return f"<Stream: {len(self._request.tokens) - self._request.n_prompt} tokens, {end}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream is of its process: send its text, or its completion")

    @property
    def completion(self) -> Completion | None:
        return self._request.completion

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._deltas)

    def close(self) -> None:
        """Cancel the generation, if it is not complete, and free its memory."""
        self._deltas.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


async def deltas_in(
    worker: "Executor", scheduler: Scheduler, request: Request
) -> AsyncGenerator[str, None]:
    """The text deltas of one generation, each computed in a worker. aclose cancels the rest."""
    import asyncio  # see asynchronous.py

    deltas, loop = scheduler.stream(request), asyncio.get_running_loop()
    try:
        while (delta := await loop.run_in_executor(worker, next, deltas, None)) is not None:
            yield delta
    finally:
        scheduler.cancel(request)
