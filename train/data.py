"""Turn the texts into tokens: held-out works apart, a tokenizer, plain documents, conversations.

    python data.py --work DIR       # DIR/tokenizer.json, train.bin, train.txt, heldout.json

train.bin is uint16 token ids, documents in random order; a conversation is a document too.
"""

import argparse
import json
import random
import re
from pathlib import Path

import numpy as np
from sources import READERS, fetch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2048
BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Whole works the model never sees, in any edition or translation.
HELD_OUT = {
    "Ruth", "Ecclesiastes", "James", "as_you_like_it", "macbeth", "Northanger Abbey",
    "1863_abraham_lincoln_r", "1962_john_f_kennedy_d",
}  # fmt: skip
PIECE = 6000  # characters of one document at most: the start of a text must not be rare
MAX_TURN = 900  # characters of one message


def speeches(scene):
    """Successive speeches of a scene: a block under a short line that ends in a full stop."""
    for block in scene.split("\n\n"):
        lines = block.strip().split("\n")
        if len(lines) > 1 and re.fullmatch(r"[A-Z][A-Za-z' ]{1,24}\.", lines[0]):
            text = re.sub(r"\[[^\]]*\]|\([^)]*\)", " ", " ".join(lines[1:])).replace("_", "")
            yield " ".join(text.split())
        elif not re.match(r"[\[(]", block):
            yield None  # not a speech: the conversation is broken


def quotations(chapter):
    """Successive paragraphs of a novel that open with a quotation, narration dropped."""
    for paragraph in chapter.split("\n\n"):
        spoken = re.findall(r'"([^"]+)"', paragraph)
        whole = paragraph.startswith('"') and paragraph.count('"') == 2 * len(spoken)
        yield " ".join(" ".join(spoken).split()) if whole else None


TURNS = {"play": speeches, "novel": quotations}


def conversations(turns, rng):
    """Runs of 2, 4 or 6 messages; a turn that is None, or too long, ends a run."""
    run = []
    for turn in [*turns, None]:
        if turn and 2 <= len(turn) <= MAX_TURN:
            run.append(turn)
            continue
        while len(run) >= 2:
            n = min(rng.choice([2, 2, 2, 4, 4, 6]), len(run) // 2 * 2)
            yield run[:n]
            run = run[n:]
        run = []


def chat_ids(tokenizer, messages):
    """As a chat is used: the last reply is tokenised apart from its prompt "Assistant: "."""
    roles = ["User", "Assistant"] * (len(messages) // 2)
    prompt = "".join(f"{r}: {m}{TURN}" for r, m in zip(roles[:-1], messages[:-1], strict=True))
    ids = tokenizer.encode(BEGIN + prompt + "Assistant: ").ids
    return ids + tokenizer.encode(messages[-1] + TURN + END).ids


def pieces(text):
    """Cut at line ends into documents of at most about PIECE characters."""
    piece, size = [], 0
    for line in text.split("\n"):
        if size + len(line) > PIECE and piece:
            yield "\n".join(piece).strip()
            piece, size = [], 0
        piece.append(line)
        size += len(line) + 1
    yield "\n".join(piece).strip()


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 3,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([BEGIN, END, TURN])  # the last three ids, as in Llama 3
    return tokenizer


def sort_texts(folder):
    """Documents and conversations to train on, the held-out works, characters a source."""
    documents, chats, heldout, sizes = [], [], {}, {}
    rng = random.Random(1)
    for source, reader in READERS.items():
        for work, kind, text in reader(folder / source):
            if work in HELD_OUT:
                if source != "web":  # one translation is enough to measure with
                    heldout[work] = (heldout.get(work, "") + "\n\n" + text).strip()
                continue
            sizes[source] = sizes.get(source, 0) + len(text)
            documents += filter(None, pieces(text))
            if kind in TURNS:
                chats += conversations(TURNS[kind](text), rng)
    missing = HELD_OUT - set(heldout)
    if missing:
        raise SystemExit(f"held-out works not found: {sorted(missing)}")
    return documents, chats, heldout, sizes, rng


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    fetch(work / "packages")
    documents, chats, heldout, sizes, rng = sort_texts(work / "packages")
    tokenizer = train_tokenizer([*documents, *(f"User: {a} Assistant: {b}" for a, b, *_ in chats)])
    plain = [e.ids for e in tokenizer.encode_batch([BEGIN + d + END for d in documents])]
    chat = [chat_ids(tokenizer, c) for c in chats]
    everything = plain + chat
    rng.shuffle(everything)
    tokenizer.save(str(work / "tokenizer.json"))
    np.concatenate([np.array(ids, np.uint16) for ids in everything]).tofile(work / "train.bin")
    (work / "train.txt").write_text("\n".join(documents))
    (work / "heldout.json").write_text(json.dumps(heldout, indent=1))
    n_plain, n_chat = sum(map(len, plain)), sum(map(len, chat))
    summary = {
        "characters": sizes,
        "documents": len(documents),
        "conversations": len(chats),
        "tokens": n_plain + n_chat,
        "chat_share": round(n_chat / (n_plain + n_chat), 3),
        "characters_per_token": round(sum(sizes.values()) / n_plain, 2),
        "heldout": {work: len(text) for work, text in heldout.items()},
    }
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
