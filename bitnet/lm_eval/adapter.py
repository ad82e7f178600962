"""A Model as lm-evaluation-harness asks for one: likelihoods, texts until a string, templates."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    raise ImportError(
        f"bitnet.lm_eval: {error} (pip install 'bitnet-engine[eval]' brings lm-evaluation-harness)"
    ) from error

import bitnet

from ..checks import check_number
from ..text.special_tokens import SpecialTokens

__all__ = ["BitnetLM", "cli_evaluate"]

Tokens = list[int]
Score = tuple[float, bool]
# a text pair or None, the context's token ids, the continuation's
Pair = tuple[tuple[str, str] | None, Tokens, Tokens]

AUTO_SLOTS = 4  # sequences at once for batch_size "auto": the gain of more is small on few cores
PAIRS_AT_ONCE = 64  # pairs between two moves of the progress bar
MAX_TOKENS = 256  # tokens of a text where a task does not say, as the harness's other models
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
MAX_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
log = logging.getLogger("bitnet")


@register_model("bitnet")
class BitnetLM(TemplateLM):
    """lm-evaluation-harness's model `bitnet`.

    pretrained: path or ORG/NAME as of bitnet.load, None for the bundled model, or a Model, which
        stays the caller's. batch_size: sequences that run at once ("auto": 4). device: "cpu".
    add_bos_token: whether texts begin as the model's prompts do (the harness's hf model: False for
        some tokenizers). max_gen_toks: tokens of a text where the task does not say.
    enable_thinking: given to the chat template, where it reads it; None leaves it to the template.
    seed: of the first text that is sampled; each further one has the next.
    prefix_token_id: what stands in front of a text without context, None for the property's own.
    options: more of bitnet.load, as context, threads, kv_dtype or memory_limit.

    Special tokens that are written in a text are these tokens, as in transformers: the harness
    passes what chat templates gave as text. ValueError for what makes no sense.
    """

    def __init__(
        self,
        pretrained: Any = None,
        *,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        add_bos_token: bool = True,
        max_gen_toks: int = MAX_TOKENS,
        enable_thinking: bool | None = None,
        seed: int = 0,
        prefix_token_id: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if device not in (None, "cpu"):
            raise ValueError(f"device: {device!r} (cpu)")
        check_number("max_gen_toks", max_gen_toks, int, 1)
        if prefix_token_id is not None:
            check_number("prefix_token_id", prefix_token_id, int, 0)
        slots = _slots(batch_size, max_batch_size)
        if isinstance(pretrained, bitnet.Model):
            if options:
                raise ValueError(f"{', '.join(options)}: of a model that is loaded already")
            self.model = pretrained
        else:
            self.model = bitnet.load(pretrained, slots=slots, **options)
        if self.model.config.pooling is not None:
            raise ValueError(f"{self.model.path.name}: an embedding model has no likelihoods")
        self.tokenizer = self.model.tokenizer
        self.batch_size, self.max_gen_toks = slots, max_gen_toks
        self.add_bos_token, self.enable_thinking = add_bos_token, enable_thinking
        self._seeds, self._prefix_token_id = itertools.count(seed), prefix_token_id

    # --------------------------------------------------------------------------------- tokens
    @property
    def max_length(self) -> int:
        """Tokens a sequence may hold."""
        return self.model.context

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        ids = [*self.tokenizer.eos_ids, *self.model.config.eos_token_ids]
        if not ids:
            raise ValueError(f"{self.model.path.name}: no end token")
        return int(ids[0])

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of a text without context: the first token of the model's prompts,
        or, where these have none, the end token. The harness's hf model takes the same, unless a
        tokenizer names a begin token that prompts do not begin with."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        prefix = self.tokenizer.encode("")
        return prefix[0] if prefix else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return str(self.model.path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> Tokens:
        """The token ids of a text. add_special_tokens: None for add_bos_token."""
        add_bos = self.add_bos_token if add_special_tokens is None else add_special_tokens
        return self.tokenizer.encode(string, add_bos=add_bos, parse_special=True)

    def tok_decode(self, tokens: Iterable[int], **kwargs: Any) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(tokens)

    # ---------------------------------------------------------------------------- chat templates
    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the model's template; None where none is asked for."""
        if chat_template is False or chat_template is None:
            return None
        return self._template().source

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation up to where the reply begins, or, without
        add_generation_prompt, within its last message."""
        template, values = self._template(), None
        if self.enable_thinking is not None and "enable_thinking" in template.names:
            values = {"enable_thinking": self.enable_thinking}
        pieces = template.pieces(
            chat_history,
            SpecialTokens(()),
            add_generation_prompt,
            values=values,
            continues=not add_generation_prompt,
        )
        return "".join(piece for piece, _ in pieces)

    def _template(self) -> Any:
        if self.tokenizer.chat_template is None:
            raise bitnet.TemplateError("chat template: the model has none")
        return self.tokenizer.chat_template

    # ------------------------------------------------------------------------------ likelihoods
    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Score]:
        """(log probability, is greedy) of each; a context too long loses its beginning."""
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        order = sorted(range(len(pairs)), key=lambda i: pairs[i][0] + pairs[i][1])
        found: dict[int, Score] = {}
        with tqdm(total=len(pairs), desc="loglikelihood", disable=disable_tqdm) as bar:
            for begin in range(0, len(order), PAIRS_AT_ONCE):
                some = order[begin : begin + PAIRS_AT_ONCE]
                scores = self.model.loglikelihood([pairs[i] for i in some])
                for i, score in zip(some, scores, strict=True):
                    found[i] = score
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], score)
                bar.update(len(some))
        return [found[i] for i in range(len(pairs))]

    def _cut(self, context: Tokens, continuation: Tokens) -> tuple[Tokens, Tokens]:
        room = self.max_length + 1 - len(continuation)  # the last token is not fed
        if room < 1:
            raise bitnet.ContextFull(0, len(continuation), self.max_length)
        if len(context) > room:
            log.warning("a context of %d tokens is cut to its last %d", len(context), room)
        return context[-room:], continuation

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """The log probability of whole texts, in windows side by side: each token is scored once.

        The first one stands behind prefix_token_id, those at a border behind as many tokens as
        the window has room for.
        """
        texts = [request.args[0] for request in requests]
        windows = [list(self._windows(text)) for text in texts]
        scores = iter(self._loglikelihood_tokens(list(itertools.chain(*windows)), disable_tqdm))
        totals = []
        for text, own in zip(texts, windows, strict=True):
            total = sum(logprob for logprob, _ in itertools.islice(scores, len(own)))
            totals.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _windows(self, text: str) -> Iterator[Pair]:
        windows = get_rolling_token_windows(
            self.tok_encode(text, add_special_tokens=False),
            self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        for window in windows:
            yield (None, *make_disjoint_window(window))

    # ------------------------------------------------------------------------------------- texts
    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of the strings `until`.

        Greedy, unless the task says do_sample. A context too long loses its beginning.
        """
        scheduler = self.model.scheduler
        asked = [self._request(*request.args) for request in requests]
        try:
            for request in asked:
                scheduler.submit(request)
            with tqdm(total=len(asked), desc="generate_until", disable=disable_tqdm) as bar:
                for n, request in enumerate(asked):
                    while not request.is_done:
                        request.deltas.clear()  # nobody collects them
                        scheduler.progress(request)
                        bar.update(sum(one.is_done for one in asked) - bar.n)
                    text = request.result().text
                    self.cache_hook.add_partial("generate_until", requests[n].args, text)
                bar.update(len(asked) - bar.n)
        finally:
            for request in asked:
                scheduler.cancel(request)
        return [request.result().text for request in asked]

    def _request(self, context: str, settings: Mapping[str, Any]) -> Any:
        options = self._options(settings)
        ids, room = self.tok_encode(context), self.max_length - options["max_tokens"]
        if room < 1:
            limit = f"less than the context, {self.max_length}"
            raise ValueError(f"max_gen_toks: {options['max_tokens']} ({limit})")
        if len(ids) > room:
            log.warning("a context of %d tokens is cut to its last %d", len(ids), room)
        return self.model.request(ids[-room:], **options)

    def _options(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The options of Model.generate for what a task asks."""
        given = dict(settings)
        until = given.pop("until", None) or []
        stop = [until] if isinstance(until, str) else list(until)
        lengths = [given.pop(name, None) for name in MAX_TOKENS_NAMES]
        n_tokens = next((n for n in lengths if n is not None), self.max_gen_toks)
        samples = given.pop("do_sample", False)
        options = {name: given.pop(name) for name in list(given) if name in SAMPLING}
        if given:
            names = ", ".join(("until", "do_sample", *MAX_TOKENS_NAMES, *SAMPLING))
            raise ValueError(f"generation_kwargs: {next(iter(given))!r} (known: {names})")
        if samples:
            options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
            options["seed"] = next(self._seeds)
        else:  # what samplers else do has no say in the likeliest token
            penalty = options.get("repetition_penalty", 1.0)
            options = {"temperature": 0.0, "repetition_penalty": penalty}
        return {"max_tokens": int(n_tokens), "stop": [text for text in stop if text], **options}


def _slots(batch_size: int | str, max_batch_size: int | None) -> int:
    """The slots for the harness's batch_size: a number, "auto" or "auto:N"."""
    text = str(batch_size)
    n = AUTO_SLOTS if text.partition(":")[0] == "auto" else int(text) if text.isdecimal() else 0
    if n < 1:
        raise ValueError(f"batch_size: {batch_size!r} (at least 1, or auto)")
    return min(n, max_batch_size or n)
