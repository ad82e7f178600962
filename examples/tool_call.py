"""A model that calls a function of ours, by OpenAI's own client and protocol.

bitnet serve MODEL &  then  python examples/tool_call.py [BASE_URL]. It needs the package openai,
and the server the extras `server` and `grammar`.
"""

import json
import sys

import openai


def population(city):
    """What the model cannot know and we can."""
    return {"London": 8_900_000, "Paris": 2_100_000}[city]


TOOL = {
    "type": "function",
    "function": {
        "name": "population",
        "description": "How many people live in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["London", "Paris"]}},
            "required": ["city"],
        },
    },
}

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1"
completions = openai.OpenAI(base_url=url, api_key="none").chat.completions
messages = [{"role": "user", "content": "How many people live in Paris?"}]

# "required": it has to call; "auto" leaves it to the model. A grammar sees to the form either way.
asked = completions.create(
    model="any", messages=messages, tools=[TOOL], tool_choice="required",
    parallel_tool_calls=False, max_tokens=100, seed=1,
)  # fmt: skip
message = asked.choices[0].message
(call,) = message.tool_calls
result = population(**json.loads(call.function.arguments))
print(f"it calls {call.function.name}({call.function.arguments}), which is {result}")

# The result goes back as a message of its own, and the model answers with it.
messages += [message, {"role": "tool", "tool_call_id": call.id, "content": str(result)}]
answer = completions.create(
    model="any", messages=messages, tools=[TOOL], tool_choice="none", max_tokens=60, seed=1
)
print(answer.choices[0].message.content)
