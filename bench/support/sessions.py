"""What it saves to read a prompt once: reuse of its prefix, and a session kept in a file.

`python bench/support/sessions.py FILE [--tokens N]`: medians of seconds, JSON lines. The file of a
session is in memory when it is read: what counts is checking and copying it.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import bitnet

QUESTION = 16  # tokens behind the common prefix
ROUNDS = 5


def seconds(function, *arguments, **options):
    begin = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - begin


def prefix(path, n_tokens, kv_dtype="f16", rounds=ROUNDS):
    """Seconds to the first token of a prompt: new, and where all but its end was read before."""
    fresh, reused = [], []
    with bitnet.load(path, kv_dtype=kv_dtype) as model:
        vocab_size = model.config.vocab_size
        for i in range(rounds):
            begin = [i + 1] * n_tokens
            for times, end in ((fresh, 7), (reused, 8)):
                prompt = begin + [(end + j) % vocab_size for j in range(QUESTION)]
                times.append(seconds(model.generate, prompt, max_tokens=1, temperature=0))
    return {"tokens": n_tokens, "fresh_s": median(fresh), "reused_s": median(reused)}


def restart(path, n_tokens, rounds=ROUNDS):
    """Seconds to the first token in a process's place that finds the prompt's prefix in a file."""
    times, prompt = [], [1] * n_tokens
    with tempfile.TemporaryDirectory() as folder:
        with bitnet.load(path, prefix_folder=folder) as model:
            model.generate(prompt, max_tokens=1, temperature=0)
        for _ in range(rounds):
            with bitnet.load(path, prefix_folder=folder) as model:
                question = [*prompt, *range(QUESTION)]
                times.append(seconds(model.generate, question, max_tokens=1, temperature=0))
    return {"tokens": n_tokens, "from_file_s": median(times)}


def saved(path, n_tokens, kv_dtype="f16", rounds=ROUNDS):
    """Seconds to read tokens, to save them, to restore them; and the bytes of the file."""
    read, save, restore = [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        bitnet.load(path, kv_dtype=kv_dtype, prefix_cache=False) as model,
    ):
        file = Path(folder, "session.gguf")
        for i in range(rounds):
            with model.session() as session:
                read.append(seconds(session.feed, [i + 1] * n_tokens))
                save.append(seconds(session.save, file))
            with model.session() as session:
                restore.append(seconds(session.restore, file))
        n_bytes = os.path.getsize(file)
    return {
        "tokens": n_tokens,
        "kv_dtype": kv_dtype,
        "read_s": median(read),
        "save_s": median(save),
        "restore_s": median(restore),
        "file_bytes": n_bytes,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    print(json.dumps(prefix(args.file, args.tokens, rounds=args.rounds)), flush=True)
    print(json.dumps(restart(args.file, args.tokens, args.rounds)), flush=True)
    for kv_dtype in ("f16", "int8"):
        print(json.dumps(saved(args.file, args.tokens, kv_dtype, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
