"""What the log says of a request beside its method, path, status and time."""

from dataclasses import dataclass
from typing import Any

from .metrics import Counts
from .worker import Generation


@dataclass
class RequestRecord:
    """Made by AccessPolicy, filled in by endpoints as ``request.state.record``.

    id: in the answer's x-request-id. key: hash of the API key that came with it, None without.
    model: that answered. generation: of a request that generates. counts: tokens of others.
    """

    id: str
    key: str | None = None
    model: str | None = None
    generation: Generation | None = None
    counts: Counts | None = None

    def fields(self) -> dict[str, Any]:
        """For log.log_request; None where there is nothing to say."""
        about: dict[str, Any] = {"id": self.id, "key": self.key, "model": self.model}
        counts = self.counts if self.generation is None else self.generation.counts()
        if counts is not None:
            about |= {"prompt_tokens": counts.prompt, "cached_tokens": counts.cached,
                      "generated_tokens": counts.generated}  # fmt: skip
        if counts is not None and counts.drafted:
            about |= {"draft_tokens": counts.drafted, "draft_accepted_tokens": counts.accepted}
        if counts is not None and self.generation is not None and self.generation.first:
            first, seconds = self.generation.first, self.generation.ended - self.generation.first
            about["first_token_seconds"] = round(first, 6)
            if seconds > 0:
                about["tokens_per_second"] = round(max(0, counts.generated - 1) / seconds, 2)
        return about
