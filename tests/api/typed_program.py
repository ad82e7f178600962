"""A user's program, for a type checker and to be run: what the public API takes and gives."""

import asyncio

import bitnet


def describe(completion: bitnet.Completion) -> str:
    speed = f"{completion.generation_tps:.0f} tokens a second"
    return f"{completion.text!r}: {completion.finish_reason}, seed {completion.seed}, {speed}"


async def collect(model: bitnet.Model, prompt: str) -> str:
    return "".join([piece async for piece in model.astream(prompt, max_tokens=3)])


def converse(model: bitnet.Model, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    with model.chat_stream(messages, max_tokens=4, temperature=0.7, top_k=5, seed=1) as stream:
        text = "".join(piece.upper() for piece in stream)
    assert stream.completion is not None
    return text + model.chat(messages, stop=["\n", "."], max_tokens=4).text


def main() -> list[str]:
    lines = [f"bitnet {bitnet.__version__}, {bitnet.info()['isa']}"]
    with bitnet.load(threads=1, context=256, kv_dtype="int8", memory_limit="1GiB") as model:
        ids: list[int] = model.tokenizer.encode("In the beginning")
        lines.append(describe(model.generate(ids, max_tokens=4, logit_bias={3: -1.5})))
        lines += [describe(done) for done in model.generate(["And", "The"], max_tokens=2)]
        lines.append(asyncio.run(collect(model, "It was")))
        lines.append(converse(model, "Who is there?"))
        value, is_greedy = model.loglikelihood("And the king said unto", " him,")
        lines.append(f"{value:.2f} {is_greedy} {model.logits(ids).shape[0]}")
        with model.session(capacity=64) as session, session.fork() as twin:
            token = int(session.feed(ids).argmax())
            lines.append(model.tokenizer.decode([*session.token_ids, token, twin.best([token])]))
        report: bitnet.MemoryReport = model.memory()
        lines.append(f"{report.growth()} bytes")
        try:
            model.generate("word " * 300)
        except bitnet.ContextFull as error:
            lines.append(f"{error.requested} of {error.capacity}")
    return lines


if __name__ == "__main__":
    print("\n".join(main()))
