"""What a model says of texts that are there: logits, likelihoods, embeddings."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.weights import Weights
from ..errors import ContextFull
from ..generation import embedding, scoring
from ..generation.scheduler import Scheduler
from ..generation.token_ids import TokenIds, token_array
from ..models.config import ModelConfig
from ..progress import Progress, Steps, finish, silent
from ..runtime.float_mode import in_ieee_mode
from ..text.tokenizer import Tokenizer

Prompt = str | TokenIds


class Scores:
    """The methods of a Model that generate nothing; the attributes are the Model's."""

    path: Path
    config: ModelConfig
    context: int
    weights: Weights

    @property
    def scheduler(self) -> Scheduler:
        """See Model."""
        raise NotImplementedError

    @property
    def tokenizer(self) -> Tokenizer:
        """See Model."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------- evaluation
    def logits(self, token_ids: TokenIds) -> NDArray[np.float32]:
        """The logits after each of these token ids: float32 (n_tokens, vocab_size), a new array."""
        return scoring.all_logits(self.scheduler, self._token_ids(token_ids))

    @overload
    def loglikelihood(self, context: Prompt, continuation: Prompt) -> tuple[float, bool]: ...

    @overload
    def loglikelihood(
        self, context: Iterable[tuple[Prompt, Prompt]], *, progress: Progress | None = None
    ) -> list[tuple[float, bool]]: ...

    @in_ieee_mode
    def loglikelihood(
        self, context: Any, continuation: Any = None, *, progress: Progress | None = None
    ) -> Any:
        """(log of the probability of the continuation after the context, whether it is greedy).

        Two texts, or two lists of token ids. Texts are encoded together, spaces at the context's
        end counting to the continuation. Greedy: each token is the most likely one at its place.
        Of a list of (context, continuation) a list: what they begin with alike is read once, and as
        many as the model has slots are read side by side. progress: is told the pairs that are
        done, see bitnet/progress.py.
        """
        return finish(
            self._loglikelihood_steps(context, continuation),
            "scoring continuations",
            progress or silent,
        )

    def _loglikelihood_steps(self, context: Any, continuation: Any) -> Steps[Any]:
        pairs = [(context, continuation)] if continuation is not None else list(context)
        limit = self.context + 1  # the last one is not fed
        sequences = []
        for pair in pairs:
            ids, n_context = scoring.continuation_ids(
                lambda text: self.tokenizer.encode(text, limit=limit), pair
            )
            sequences.append((self._token_ids(ids, limit), n_context))
        scores = yield from scoring.loglikelihood_steps(self.scheduler, sequences)
        return scores if continuation is None else scores[0]

    # --------------------------------------------------------------------------------- embeddings
    @property
    def prompts(self) -> dict[str, str]:
        """{name: text} an embedding model's author puts in front of texts, often under "query"."""
        return dict(self.weights.checkpoint.prompts)

    def embed(
        self, texts: str | Sequence[str], *, prompt_name: str | None = None, prompt: str = ""
    ) -> NDArray[np.float32]:
        """Embeddings of a text or a list of texts: float32 (hidden_size,) or (n, hidden_size).

        Rows have length 1: their dot products are cosines. For embedding models only, ValueError
        for others. prompt: text put in front of each, as such models want for queries; prompt_name:
        the same by its name in model.prompts. With slots several texts share a forward pass.
        """
        return finish(self._embed_steps(texts, prompt_name, prompt))

    def _embed_steps(
        self, texts: str | Sequence[str], prompt_name: str | None, prompt: str
    ) -> Steps[NDArray[np.float32]]:
        if prompt_name is not None:
            if prompt_name not in self.prompts:
                known = ", ".join(self.prompts) or "none; give a prompt instead"
                raise ValueError(f"prompt_name: {prompt_name!r} (the model has {known})")
            prompt = self.prompts[prompt_name]
        encode, limit = self.tokenizer.encode, self.context
        several = [texts] if isinstance(texts, str) else texts
        ids = [encode(prompt + text, add_eos=True, limit=limit) for text in several]
        rows = yield from self._embed_token_steps(ids)
        return rows[0] if isinstance(texts, str) else rows

    def embed_tokens(self, token_ids: Sequence[TokenIds]) -> NDArray[np.float32]:
        """The same of lists of token ids, as they are: float32 (n, hidden_size)."""
        return finish(self._embed_token_steps(token_ids))

    def _embed_token_steps(self, token_ids: Sequence[TokenIds]) -> Steps[NDArray[np.float32]]:
        if self.config.pooling is None:
            raise ValueError(f"{self.path.name}: {self.config.architecture} is no embedding model")
        for i, sequence in enumerate(token_ids):
            if not len(sequence):
                raise ValueError(f"texts[{i}]: no tokens (at least 1)")
        ids = [self._token_ids(sequence) for sequence in token_ids]
        return (yield from embedding.embed_steps(self.scheduler, ids))

    def _token_ids(self, token_ids: TokenIds, limit: int | None = None) -> list[int]:
        ids: list[int] = token_array(token_ids, self.config.vocab_size).tolist()
        if len(ids) > (limit or self.context):
            raise ContextFull(0, len(ids), self.context)
        return ids
