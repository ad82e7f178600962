"""The commands of `bitnet`, its help, and the answer to words that name none."""

import sys

# What a command, a module of bitnet/cli, does.
COMMANDS = {
    "run": "generate text from one prompt, and write it as it comes.",
    "chat": "a conversation; the keys and values of what was said before are kept between turns.",
    "serve": "an HTTP server with OpenAI's protocol, and a chat page.",
    "embed": "embeddings of texts, a line of JSON each.",
    "pull": "fetch a model from the Hugging Face hub, of one commit and checked; print its path.",
    "list": "the models that were pulled, with their bytes.",
    "show": "what was pulled of one model: its commit, its files and where they are.",
    "rm": "delete what was pulled of a model.",
    "convert": "a model of any container and ternary type to a GGUF or a Hugging Face folder.",
    "verify": "whether a model file is sound, and the same model as another file.",
    "inspect": "what a model file holds, how it will be used and what memory it will need.",
    "memory": "what a model needs with these settings; with --measure beside what the OS counts.",
    "info": "what the engine found on this machine and chose: instruction set, threads, and why.",
    "perplexity": "how well a model foretells a text.",
    "compare": "how far one model's probabilities are from another's, on one text.",
    "bench": "tokens a second of prefill and decode, and their share of the memory bandwidth.",
    "cache": "list or clear the folder of weights that could not be used in place.",
    "completion": "a script that completes commands and options in a shell.",
}
WRONG_USAGE, BROKEN_PIPE = 2, 141  # 141: 128 + SIGPIPE, what a shell would say


def answer(words: list[str]) -> int | None:
    """The exit code where the words ask for help or name no command, which is answered then."""
    if not words or words in (["help"], ["-h"], ["--help"]):
        try:
            print(help_text(), flush=True)
        except BrokenPipeError:
            return BROKEN_PIPE
        return 0
    name = words[1] if words[0] == "help" else words[0]
    if name in COMMANDS or name == "--version":
        return None
    hint = did_you_mean(name, COMMANDS)
    print(f"bitnet: error: {name!r} is no command{hint} (`bitnet help`)", file=sys.stderr)
    return WRONG_USAGE


def did_you_mean(word: str, names) -> str:
    """ "; did you mean NAME?" where a name is near: one that begins so, else one spelt alike."""
    import difflib  # 4 ms

    begins = [name for name in names if len(word) > 2 and name.startswith(word)]
    close = begins or difflib.get_close_matches(word, names, 1)
    return f"; did you mean {close[0]}?" if close else ""


def help_text() -> str:
    """What `bitnet help` shows."""
    about = "".join(f"  {name:10}  {text}\n" for name, text in COMMANDS.items())
    return (
        "usage: bitnet COMMAND [options] [MODEL] ...\n\n"
        "Run ternary (BitNet b1.58) language models on the CPU.\n\n"
        f"commands:\n{about}\n"
        "MODEL is a .gguf file, a Hugging Face folder, or ORG/NAME of the Hugging Face hub or\n"
        "the address of its page there, pulled where it is not here yet; without one the bundled\n"
        "model runs. A lone word of `run` is a prompt.\n\n"
        "examples:\n"
        '  bitnet run "What is a lighthouse?"\n'
        "  bitnet chat microsoft/bitnet-b1.58-2B-4T-gguf\n"
        "  bitnet serve --port 8080\n\n"
        "`bitnet COMMAND --help` or `bitnet help COMMAND` lists a command's options."
    )
