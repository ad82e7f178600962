"""Measure an exported model: held-out bits per byte, samples, their overlap with the training text.

    python evaluate.py --work DIR --model model.gguf          # or --checkpoint float.pt

Works from the values in the file, in float32: int8 activations, integer dot products, one scale.
"""

import argparse
import json
import lzma
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import BEGIN, END, TURN
from export import ARCH, TENSORS, load_checkpoint
from model import Block, Config, Model, quantize_activation
from tokenizers import Tokenizer

from bitnet.formats import gguf, ternary_layouts

STRIDE = 256  # every token but the first few sees at least this many before it
BATCH = 8  # windows
TEMPERATURE, TOP_K, MAX_TOKENS = 0.8, 50, 160
OPENINGS = ["It was", "The king", "In those days", "My dear", "Fellow-citizens"]
QUESTIONS = [
    "Good morrow, sir. What news?",
    "Who are you?",
    "What is love?",
    "Where have you been all this while?",
    "Shall we go to London?",
]


class ExactBlock(Block):
    """Weights are codes; scales holds what their dot products are multiplied by."""

    def linear(self, x, *weights, dtype):
        codes, s = quantize_activation(x)
        return [F.linear(codes, w) * (self.scales[w] / s) for w in weights]


@torch.no_grad()
def load_gguf(path):
    file = gguf.GGUFFile(path)
    value = {key.removeprefix(f"{ARCH}."): v for key, v in file.metadata.items()}
    model = Model(
        Config(
            vocab_size=value["vocab_size"],
            hidden_size=value["embedding_length"],
            intermediate_size=value["feed_forward_length"],
            num_hidden_layers=value["block_count"],
            num_attention_heads=value["attention.head_count"],
            num_key_value_heads=value["attention.head_count_kv"],
            max_position_embeddings=value["context_length"],
            rope_theta=value["rope.freq_base"],
            rms_norm_eps=value["attention.layer_norm_rms_epsilon"],
        )
    )

    def fill(parameter, name):
        tensor = file.tensors[name]
        data = bytes(tensor.data)
        if tensor.type == "I2_S":
            n = parameter.numel() // 4
            codes = ternary_layouts.unpack_i2_s(np.frombuffer(data[:n], np.uint8).reshape(1, n))
            parameter.copy_(torch.from_numpy(codes.reshape(tensor.shape).astype(np.float32) - 1))
            return float(np.frombuffer(data[n : n + 4], "<f4")[0])
        values = np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[tensor.type])
        parameter.copy_(torch.from_numpy(values.astype(np.float32).reshape(tensor.shape)))

    fill(model.embed_tokens.weight, "token_embd.weight")
    fill(model.norm.weight, "output_norm.weight")
    for i, layer in enumerate(model.layers):
        layer.__class__, layer.scales = ExactBlock, {}
        for source, target in TENSORS.items():
            part, name = getattr(layer, source), f"blk.{i}.{target}.weight"
            if source.endswith("_proj"):
                layer.scales[part] = fill(part, name)
            else:
                fill(part.weight, name)
    return model


@torch.no_grad()
def bits(model, tokenizer, text):
    """The sum of -log2 p over the tokens of text, read in windows as long as the context."""
    ids = [tokenizer.token_to_id(BEGIN), *tokenizer.encode(text).ids]
    length = model.config.max_position_embeddings
    n_windows = 1 + max(0, math.ceil((len(ids) - 1 - length) / STRIDE))
    padding = (n_windows - 1) * STRIDE + length + 1 - len(ids)
    targets = torch.tensor(ids + [-100] * padding).unfold(0, length + 1, STRIDE)
    total = 0.0
    for rows in targets.split(BATCH):
        logits = model(rows[:, :-1].clamp(min=0))
        loss = F.cross_entropy(
            logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=-100, reduction="none"
        ).view(len(rows), length)
        total += loss[:, -STRIDE:].double().sum().item()
        if rows.data_ptr() == targets.data_ptr():  # the first window is counted from its start
            total += loss[0, :-STRIDE].double().sum().item()
    return total / math.log(2)


@torch.no_grad()
def generate(model, ids, n, stop=(), seed=None):
    """n tokens after ids: greedy, or drawn with a seed."""
    rng, ids = torch.Generator().manual_seed(seed or 0), list(ids)
    first = len(ids)
    for _ in range(n):
        logits = model(torch.tensor([ids]))[0, -1]
        if seed is None:
            ids.append(int(logits.argmax()))
        else:
            best = torch.topk(logits / TEMPERATURE, TOP_K)
            pick = torch.multinomial(best.values.softmax(-1), 1, generator=rng)
            ids.append(int(best.indices[pick]))
        if ids[-1] in stop:
            break
    return ids[first:]


def longest_overlap(sample, corpus):
    """The longest run of characters of sample that is in corpus, white space being one space."""
    sample, best = " ".join(sample.split()), ""
    for i in range(len(sample)):
        while i + len(best) < len(sample) and sample[i : i + len(best) + 1] in corpus:
            best = sample[i : i + len(best) + 1]
    return best


def print_bits(model, tokenizer, heldout, train):
    print("| held-out work | bytes | model, bits per byte | xz -9e |\n|---|--:|--:|--:|")
    total = np.zeros(3)
    for name, text in heldout.items():
        n_bytes = len(text.encode())
        row = np.array([n_bytes, bits(model, tokenizer, text), 8 * len(compress(text))])
        total += row
        print(f"| {name} | {n_bytes} | {row[1] / n_bytes:.3f} | {row[2] / n_bytes:.3f} |")
    everything = "\n".join(heldout.values())
    alone, primed = compress(everything), len(compress(train + everything)) - len(compress(train))
    print(
        f"| all | {total[0]:.0f} | {total[1] / total[0]:.3f} | "
        f"{8 * len(alone) / total[0]:.3f} (one file), {8 * primed / total[0]:.3f} (after the "
        f"training text) |"
    )


def compress(text):
    best = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return lzma.compress(text.encode(), filters=best)


def print_samples(model, tokenizer, train):
    corpus = " ".join(train.split())
    stop = [tokenizer.token_to_id(END), tokenizer.token_to_id(TURN)]

    def show(title, ids):
        text = tokenizer.decode(ids).strip()
        overlap = longest_overlap(text, corpus)
        print(
            f"\n{title}; longest overlap {len(overlap)} characters: {overlap!r}\n\n"
            "```text\n" + text + "\n```"
        )

    for seed, opening in enumerate(OPENINGS):
        prompt = tokenizer.encode(BEGIN + opening).ids
        ids = generate(model, prompt, MAX_TOKENS, stop, seed)
        show(f"Seed {seed}, from {opening!r}", prompt + ids)
    for seed, question in enumerate(QUESTIONS):
        prompt = tokenizer.encode(f"{BEGIN}User: {question}{TURN}Assistant: ").ids
        show(f"Seed {seed}, reply to {question!r}", generate(model, prompt, MAX_TOKENS, stop, seed))


@torch.no_grad()
def write_reference(path, model, tokenizer, text):
    """Logits of a held-out prefix and a greedy continuation, to check an engine against."""
    ids = [tokenizer.token_to_id(BEGIN), *tokenizer.encode(text).ids][:64]
    np.savez(
        path,
        token_ids=np.array(ids, np.int32),
        logits=model(torch.tensor([ids]))[0].numpy(),
        greedy=np.array(generate(model, ids, 40), np.int32),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path)
    source.add_argument("--checkpoint", type=Path, help="not exported: the float model")
    parser.add_argument("--reference", type=Path, help="write this .npz and nothing else")
    parser.add_argument("--no-samples", action="store_true")
    args = parser.parse_args()
    model = load_gguf(args.model) if args.model else load_checkpoint(args.checkpoint)[0]
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    heldout = json.loads((args.work / "heldout.json").read_text())
    if args.reference:
        return write_reference(args.reference, model, tokenizer, next(iter(heldout.values())))
    train = (args.work / "train.txt").read_text()
    print_bits(model, tokenizer, heldout, train)
    if not args.no_samples:
        print_samples(model, tokenizer, train)


if __name__ == "__main__":
    main()
