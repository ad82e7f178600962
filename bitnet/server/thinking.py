"""How much a model is asked to think, in the words that its chat template reads."""

from ..text.chat_template import ChatTemplate

NO_THINKING = ("none", "minimal")  # efforts for which a template that can is told not to


def effort_values(template: ChatTemplate | None, effort: str | None) -> dict[str, str | bool]:
    """The chat_template_kwargs for an effort: {} where the template reads nothing of it."""
    if template is None or effort is None:
        return {}
    values: dict[str, str | bool] = {}
    if "reasoning_effort" in template.names:
        values["reasoning_effort"] = effort
    if effort in NO_THINKING and "enable_thinking" in template.names:
        values["enable_thinking"] = False
    return values
