"""A FastAPI application with OpenAI's protocol under /llm and a route of its own on the same model.

uvicorn --app-dir examples fastapi_app:app  then  curl 'localhost:8000/define?word=harbour'  and any
client of OpenAI's at http://localhost:8000/llm/v1. MODEL in the environment is another model.
"""

import os

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

import bitnet
from bitnet.server import Options, asgi

model = bitnet.load(os.environ.get("MODEL"), slots=4)
llm = asgi(model, Options(model_names=("ours",)))
app = FastAPI(lifespan=llm.lifespan)  # a mounted application has none of its own
app.mount("/llm", llm)  # the chat page is at /llm/


@app.get("/define")
async def define(word: str) -> StreamingResponse:
    """A definition as it comes."""
    messages = [{"role": "user", "content": f"What is a {word}?"}]
    return StreamingResponse(model.achat_stream(messages, max_tokens=60), media_type="text/plain")
