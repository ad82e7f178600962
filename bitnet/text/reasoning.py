"""What a model thinks before it answers, `<think>...</think>`, and its answer, told apart."""

BEGIN, END = "<think>", "</think>"
# What becomes of it, as llama.cpp's server names it: "none" leaves it in the text, tags and all,
# the other two take it out.
FORMATS = ("auto", "deepseek", "none")


class ReasoningSplitter:
    """The reasoning and the answer of one reply, from its text as it comes.

    begins_inside: the prompt ends with `<think>`. Only what a reply begins with is reasoning. White
    space inside of the tags and behind them belongs to neither. The result does not depend on how
    the text is cut into pieces.
    """

    def __init__(self, begins_inside: bool = False) -> None:
        self._step = self._before
        self._begins_inside = begins_inside
        self._begun = False  # whether there is any reasoning yet
        self._held = ""  # may belong to a tag, or be white space in front of one

    def push(self, text: str, is_last: bool = False) -> tuple[str, str]:
        """(reasoning, answer): what is certain of both after this piece. is_last: none follows."""
        self._held += text
        return self._step(is_last)

    def _before(self, is_last: bool) -> tuple[str, str]:
        begin = self._held.lstrip()
        if begin.startswith(BEGIN):
            self._held = begin[len(BEGIN) :]
        elif BEGIN.startswith(begin) and not is_last:
            return "", ""
        elif not self._begins_inside:
            self._step = self._answer
            return self._step(is_last)
        self._step = self._inside
        return self._step(is_last)

    def _inside(self, is_last: bool) -> tuple[str, str]:
        if not self._begun:
            self._held = self._held.lstrip()
        reasoning, tag, rest = self._held.partition(END)
        if tag:
            self._step, self._held = self._behind, rest
            return reasoning.rstrip(), self._step(is_last)[1]
        n_held = 0 if is_last else self._n_of_tag()
        reasoning = self._held[: len(self._held) - n_held].rstrip()
        self._held = self._held[len(reasoning) :]
        self._begun = self._begun or bool(reasoning)
        return reasoning, ""

    def _n_of_tag(self) -> int:
        """How many characters at the end could be the beginning of the tag."""
        return next((n for n in range(len(END) - 1, 0, -1) if self._held.endswith(END[:n])), 0)

    def _behind(self, is_last: bool) -> tuple[str, str]:
        self._held = self._held.lstrip()
        if self._held:
            self._step = self._answer
        return self._answer(is_last)

    def _answer(self, is_last: bool) -> tuple[str, str]:
        answer, self._held = self._held, ""
        return "", answer
