"""Libraries of agents, unchanged, against a real server: openai-agents, pydantic-ai, LangChain, the
AI SDK of Vercel.

Each is skipped where it is not installed, as `.ci/long clients` does; AI_SDK_FOLDER: where
`npm install ai @ai-sdk/openai @ai-sdk/anthropic zod` was run.
"""

import asyncio
import json
import os
import subprocess

import pytest
from support.agent_requests import long_model
from support.server_process import ServerProcess

pytest.importorskip("llguidance")
STOP = {"stop": ["."], "seed": 5}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = long_model(tmp_path_factory.mktemp("model"))
    with ServerProcess(path, "--model-name", "bundled", "--response-store", "1M") as one:
        yield one


@pytest.fixture(scope="module")
def url(server):
    return f"http://127.0.0.1:{server.port}/v1"


def test_openai_agents(url):
    agents = pytest.importorskip("agents")
    openai = pytest.importorskip("openai")
    agents.set_tracing_disabled(True)
    asked = []

    @agents.function_tool
    def now(utc: bool) -> str:
        """The time."""
        asked.append(utc)
        return "noon"

    async def run():
        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        settings = agents.ModelSettings(
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=2000,
            verbosity="low",
            reasoning=openai.types.shared.Reasoning(effort="low", summary="auto"),
            response_include=["reasoning.encrypted_content"],
            extra_body=STOP,
        )
        agent = agents.Agent(
            name="clock",
            instructions="Be brief.",
            tools=[now],
            model=agents.OpenAIResponsesModel("bundled", client),
            model_settings=settings,
        )
        whole = await agents.Runner.run(agent, "What time is it?", max_turns=3)
        said = [*whole.to_input_list(), {"role": "user", "content": "And now?"}]
        streamed = agents.Runner.run_streamed(agent, said, max_turns=3)
        kinds = {event.type async for event in streamed.stream_events()}
        by_id = await agents.Runner.run(
            agent, "What time is it?", max_turns=3, auto_previous_response_id=True
        )
        await client.close()
        return whole, streamed, kinds, by_id

    whole, streamed, kinds, by_id = asyncio.run(run())
    assert len(asked) == 3 and whole.final_output and streamed.final_output
    assert by_id.final_output == whole.final_output
    assert "run_item_stream_event" in kinds


def test_pydantic_ai(url):
    models = pytest.importorskip("pydantic_ai.models.openai")
    from pydantic import BaseModel
    from pydantic_ai import Agent
    from pydantic_ai.providers.openai import OpenAIProvider

    class Weather(BaseModel):
        sunny: bool

    model = models.OpenAIResponsesModel(
        "bundled", provider=OpenAIProvider(base_url=url, api_key="none")
    )
    settings = models.OpenAIResponsesModelSettings(
        max_tokens=600,
        openai_reasoning_effort="low",
        openai_reasoning_summary="auto",
        openai_text_verbosity="low",
        extra_body=STOP,
    )
    agent = Agent(model, output_type=Weather, model_settings=settings, retries=3)

    @agent.tool_plain
    def now() -> str:
        """The time."""
        return "noon"

    assert isinstance(agent.run_sync("Is it sunny?").output, Weather)

    async def talk():
        talker = Agent(model, model_settings=settings)
        async with talker.run_stream("Hello?") as stream:
            first = "".join([text async for text in stream.stream_text(delta=True)])
        second = await talker.run("Well?", message_history=stream.all_messages())
        return first, second.output

    assert all(asyncio.run(talk()))


def test_langchain_responses_with_tools(url):
    langchain = pytest.importorskip("langchain_openai")
    from langchain_core.messages import HumanMessage, ToolMessage
    from pydantic import BaseModel

    class Answer(BaseModel):
        sure: bool

    def speak(loudly: bool) -> None:
        """Say something."""

    chat = langchain.ChatOpenAI(
        model="bundled", base_url=url, api_key="none", use_responses_api=True, max_tokens=300,
        reasoning={"effort": "low", "summary": "auto"}, verbosity="low", extra_body=STOP,
        include=["reasoning.encrypted_content"],
    )  # fmt: skip
    forced = chat.bind_tools([speak], tool_choice="speak")
    said = [HumanMessage("Who goes there?")]
    called = forced.invoke(said)
    (call,) = called.tool_calls
    assert call["name"] == "speak" and set(call["args"]) == {"loudly"}
    said += [called, ToolMessage("done", tool_call_id=call["id"])]
    assert chat.invoke(said).text
    chunks = list(forced.stream(said[:1]))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.tool_calls[0]["args"] == call["args"] and whole.usage_metadata["output_tokens"]
    assert isinstance(chat.with_structured_output(Answer).invoke("Is it?"), Answer)
    by_id = langchain.ChatOpenAI(
        model="bundled", base_url=url, api_key="none", max_tokens=20, use_responses_api=True,
        use_previous_response_id=True,
    )  # fmt: skip
    first = by_id.invoke("Who?")
    assert by_id.invoke([HumanMessage("Who?"), first, HumanMessage("Me?")]).text


AI_SDK = """
import {createOpenAI} from '@ai-sdk/openai';
import {generateText, streamText, generateObject, tool, stepCountIs} from 'ai';
import {z} from 'zod';
const model = createOpenAI({baseURL: process.env.BASE_URL, apiKey: 'none'})('bundled');
const now = tool({description: 'The time', inputSchema: z.object({utc: z.boolean()}),
                  execute: async () => 'noon'});
const asked = {model, prompt: 'What time is it?', tools: {now}, maxOutputTokens: 400,
               maxRetries: 0};
const first = ({stepNumber}) => ({toolChoice: stepNumber === 0 ? 'required' : 'auto'});
const found = {};
for (const store of [true, false]) {
    const two = await generateText({...asked, stopWhen: stepCountIs(2), prepareStep: first,
                                    providerOptions: {openai: {store, parallelToolCalls: false}}});
    found[`steps ${store}`] = two.steps.map(step => step.content.map(part => part.type));
}
const stream = streamText({...asked, toolChoice: 'required', stopWhen: stepCountIs(1)});
found.stream = [];
for await (const part of stream.fullStream) found.stream.push(part.type);
found.object = (await generateObject({model, schema: z.object({sure: z.boolean()}), prompt: 'x',
                                      maxRetries: 0})).object;
console.log(JSON.stringify(found));
"""


def run_node(script, url):
    """What a script prints last, as JSON."""
    folder = os.environ.get("AI_SDK_FOLDER")
    if not folder:
        pytest.skip("no AI_SDK_FOLDER")
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"BASE_URL": url},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_ai_sdk(url):
    found = run_node(AI_SDK, url)
    for store in ("true", "false"):  # with it, a call is sent back as a reference to its item
        called, answered = found[f"steps {store}"]
        assert "tool-call" in called and "tool-result" in called and answered
    assert "tool-input-delta" in found["stream"] and found["stream"][-1] == "finish"
    assert set(found["object"]) == {"sure"}


# --------------------------------------------------------------------------- Anthropic's protocol
@pytest.fixture(scope="module")
def root(server):
    return f"http://127.0.0.1:{server.port}"


def test_langchain_anthropic(root):
    langchain = pytest.importorskip("langchain_anthropic")
    from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage

    def speak(loudly: bool) -> None:
        """Say something."""

    chat = langchain.ChatAnthropic(
        model="bundled", base_url=root, api_key="none", max_tokens=300, stop_sequences=["."]
    )
    forced = chat.bind_tools([speak], tool_choice="speak")
    said = [SystemMessage("Be brief."), HumanMessage("Who goes there?")]
    called = forced.invoke(said)
    (call,) = called.tool_calls
    assert call["name"] == "speak" and set(call["args"]) == {"loudly"}
    answered = chat.invoke([*said, called, ToolMessage("done", tool_call_id=call["id"])])
    assert answered.text and answered.response_metadata["stop_reason"] == "stop_sequence"
    chunks = list(forced.stream(said))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.tool_calls[0]["name"] == "speak" and whole.usage_metadata["output_tokens"]


def test_pydantic_ai_anthropic(root):
    models = pytest.importorskip("pydantic_ai.models.anthropic")
    from pydantic import BaseModel
    from pydantic_ai import Agent
    from pydantic_ai.providers.anthropic import AnthropicProvider

    class Weather(BaseModel):
        sunny: bool

    provider = AnthropicProvider(base_url=root, api_key="none")
    model = models.AnthropicModel("bundled", provider=provider)
    settings = {"max_tokens": 600, "stop_sequences": ["."]}
    agent = Agent(model, output_type=Weather, model_settings=settings, retries=3)
    assert isinstance(agent.run_sync("Is it sunny?").output, Weather)

    async def talk():
        talker = Agent(model, model_settings=settings, instructions="Be brief.")
        async with talker.run_stream("Hello?") as stream:
            return "".join([text async for text in stream.stream_text(delta=True)])

    assert asyncio.run(talk())


AI_SDK_ANTHROPIC = """
import {createAnthropic} from '@ai-sdk/anthropic';
import {generateText, streamText, tool, stepCountIs} from 'ai';
import {z} from 'zod';
const model = createAnthropic({baseURL: process.env.BASE_URL, apiKey: 'none'})('bundled');
const now = tool({description: 'The time', inputSchema: z.object({utc: z.boolean()}),
                  execute: async () => 'noon'});
const asked = {model, prompt: 'What time is it?', tools: {now}, maxOutputTokens: 400,
               maxRetries: 0, stopSequences: ['.']};
const first = ({stepNumber}) => ({toolChoice: stepNumber === 0 ? 'required' : 'auto'});
const two = await generateText({...asked, stopWhen: stepCountIs(2), prepareStep: first});
const stream = streamText({...asked, toolChoice: 'required', stopWhen: stepCountIs(1)});
const found = {steps: two.steps.map(step => step.content.map(part => part.type)), stream: []};
for await (const part of stream.fullStream) found.stream.push(part.type);
console.log(JSON.stringify(found));
"""


def test_ai_sdk_anthropic(url):
    found = run_node(AI_SDK_ANTHROPIC, url)
    called, answered = found["steps"]
    assert "tool-call" in called and "tool-result" in called and "text" in answered
    assert "tool-input-delta" in found["stream"] and found["stream"][-1] == "finish"
