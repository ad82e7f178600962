"""What turns the events of a generation into one form of HTTP answer: the protocol of a reply.

ResponseStream drives a reply object, one for each HTTP request, in this order:

    prompts(prompts)          where they are to be repeated or scored
    opening(n)                what comes before any text
    chunks(event)             for every worker.Event, in order
    closing(usage)            once all sequences are complete

Each gives chunks: dicts that msgspec can write as JSON. What then happens with them:

    a stream                  line(chunk) is sent for each as it comes, `end` behind the last. The
                              closing chunk is sent if `closes`, or if the client asked for usage.
                              An ApiError after the first line sends failure(error) instead.
    a whole answer            fold(all chunks, the closing one included) is the JSON of the body, so
                              that a whole answer says what the stream says by construction.

openai_chunks.ChatChunks and TextChunks are such objects, and response_events.ResponseEvents.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from ..generation.scoring import TokenScore
from .errors import ApiError
from .worker import Event

Chunk = dict[str, Any]


class Prompt(NamedTuple):
    """The prompt of a sequence: its token ids, its text, and the scores of its tokens but the first
    where they are asked for."""

    ids: Sequence[int]
    text: str
    scores: Sequence[TokenScore] | None


class Reply(Protocol):
    """The reply to one HTTP request; it may keep what it needs from chunk to chunk.

    closes: whether every stream ends with the closing chunk. end: bytes behind a stream's last
    line.
    """

    closes: bool
    end: bytes

    def prompts(self, prompts: Sequence[Prompt]) -> None:
        """Told before all else, where a request asks for its prompts to be repeated or scored: of
        each sequence its prompt."""

    def opening(self, n: int) -> Iterable[Chunk]:
        """The chunks before any text, of n sequences."""

    def chunks(self, event: Event) -> Iterable[Chunk]:
        """The chunks of one event; none if it is not clear yet what they will be."""

    def closing(self, usage: Chunk) -> Chunk:
        """The chunk behind all text. usage: see openai_chunks.usage."""

    def fold(self, chunks: Sequence[Chunk]) -> Chunk:
        """The whole answer from all chunks of the reply."""

    def line(self, chunk: Chunk) -> bytes:
        """A chunk as a server-sent event."""

    def failure(self, error: ApiError) -> bytes:
        """The server-sent event of an error that ends a stream."""
