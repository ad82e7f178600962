"""Other protocols' requests as chats: what a few bytes of one may become."""

import pytest

pytest.importorskip("msgspec")

from bitnet.server import messages_schema, responses_schema
from bitnet.server.conversation import MAX_CONVERSATION, Conversation
from bitnet.server.errors import ApiError
from bitnet.server.parsing import Passed
from bitnet.server.schema import MAX_TOOLS

CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "b"}


class Part(dict):
    """A part of a message that is compared with no other: each with each would be their square."""

    def __eq__(self, other):
        raise AssertionError("two parts are compared")

    __hash__ = None


def of_responses(items):
    body = responses_schema.ResponsesRequest(input=items)
    return responses_schema.chat_request(body, Conversation(), [], lambda *_: None)[0]


def of_messages(*turns):
    made = [messages_schema.Turn(role=role, content=content) for role, content in turns]
    return messages_schema.chat_request(
        messages_schema.PromptRequest(messages=made), Conversation()
    )


NEW = {"new": 1, "empty": None}


@pytest.mark.parametrize("module, fields, told", [
    (responses_schema, {"input": [{"role": "user", "content": "x"} | NEW] * 2}, "input[].new"),
    (responses_schema,
     {"input": "x", "tools": [{"type": "function", "name": "f"} | NEW]}, "tools[].new"),
    (messages_schema, {"messages": [("user", [{"type": "text", "text": "x"} | NEW])]},
     "messages[].content[].new"),
    (messages_schema,
     {"messages": [("user", "x")], "tools": [{"name": "f", "input_schema": {}} | NEW]},
     "tools[].new"),
])  # fmt: skip
def test_unknown_fields_are_told(module, fields, told):
    names = []
    passed = Passed()
    passed.field = names.append
    conversation = Conversation(passed=passed)
    if module is responses_schema:
        body = module.ResponsesRequest(**fields)
        module.chat_request(body, conversation, [], lambda *_: None)
    else:
        turns = [module.Turn(*turn) for turn in fields.pop("messages")]
        module.chat_request(module.PromptRequest(messages=turns, **fields), conversation)
    assert set(names) == {told}


def test_refusals_are_not_compared():
    parts = [Part(type="refusal", refusal=str(i)) for i in range(3)]
    (message,) = of_responses([{"role": "assistant", "content": parts}]).messages
    assert message.text("") == "0\n1\n2"


@pytest.mark.parametrize("turns, allowed", [
    (lambda n: [("assistant", [CALL] * n)], MAX_TOOLS),
    (lambda n: [("assistant", [CALL]), ("user", [RESULT] * (n - 1))], MAX_CONVERSATION),
])  # fmt: skip
def test_blocks_do_not_become_more_than_a_chat_may_have(turns, allowed):
    assert of_messages(*turns(allowed)).messages
    with pytest.raises(ApiError, match=f"at most {allowed}") as raised:
        of_messages(*turns(allowed + 1))
    assert raised.value.status == 400
