"""Train with quantisation in the loop; stop, kill or resume at any time.

    python train.py --work DIR --hours 1.75 --name prose     # the same command resumes
    python train.py --work DIR --hours 1.25 --start prose.gguf

The first learns to write; the second goes on from that file with two more blocks, and learns to
answer. Warm up, stay, decay: the learning rate is constant for nearly half of the time and then
falls linearly to zero. Ternary matrices are trained by Muon, the embedding and the norms by AdamW.
Every line of DIR/NAME.jsonl is one measurement.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from data import ANSWER
from grow import grown
from model import Config, Model
from tokenizers import Tokenizer

TOKENS = 8192  # a step
ANSWER_TOKENS, PROSE_TOKENS = 2560, 1536  # a step of the second run; small, to have many steps
LENGTH, LONG_LENGTH = 256, 512  # a window; attention is dear, so long ones come only at the end
DECAY, LONG = 0.55, 0.2  # the last parts of the time in which the rate falls, windows are long
WARMUP = 100  # steps
N_NEW, START_RATE = 2, 0.5  # blocks that the second run adds; of the rates of the first
MATRIX_LR, ADAM_LR, WEIGHT_DECAY = 0.02, 3e-3, 0.1
PROBE_EVERY, SAVE_EVERY = 250, 180
IGNORED = -100  # torch's: a target that counts for nothing


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by Newton-Schulz steps (Jordan et al., 2024)."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}  # by shape, lying on the long side: one batched product for all of them
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                tall = p.shape[0] > p.shape[1]
                update = update.T if tall else update
                alike.setdefault(update.shape, []).append((p, update, tall))
            for members in alike.values():
                updates = orthogonalize(torch.stack([update for _, update, _ in members]))
                for (p, _, tall), update in zip(members, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    aspect = max(1, p.shape[0] / p.shape[1]) ** 0.5
                    p.add_(update.T if tall else update, alpha=-group["lr"] * aspect)


def orthogonalize(x, steps=5):  # (count, short, long)
    x = (x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).bfloat16()
    for _ in range(steps):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.float()


def optimizers(model):
    matrices = [p for n, p in model.named_parameters() if n.endswith("_proj")]
    others = [p for n, p in model.named_parameters() if not n.endswith("_proj")]
    return [
        Muon(matrices, lr=MATRIX_LR, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def windows(tokens, n_tokens, length, step):
    """Random windows, the same for the same step whatever happened before."""
    rng = np.random.default_rng([7, step])
    starts = rng.integers(0, len(tokens) - length - 1, n_tokens // length)
    rows = torch.from_numpy(np.stack([tokens[s : s + length + 1] for s in starts]).astype(np.int64))
    return rows[:, :-1], rows[:, 1:]


def answers(tokens, n_tokens, length, step):
    """Successive rows, of which only the answers are to be predicted."""
    start = step * n_tokens % (len(tokens) - n_tokens)
    part = torch.from_numpy(tokens[start : start + n_tokens + 1].astype(np.int64))
    targets = torch.where(part[1:] >= ANSWER, part[1:] - ANSWER, IGNORED)
    return (part[:-1] % ANSWER).view(-1, length), targets.view(-1, length)


class Batches:
    def __init__(self, work, with_answers):
        def read(name):
            return np.memmap(work / name, np.uint16, "r")

        self.n_prose = PROSE_TOKENS if with_answers else TOKENS
        self.n_answers = ANSWER_TOKENS if with_answers else 0
        self.prose = read("prose.bin" if with_answers else "train.bin")
        self.answers = read("answers.bin") if with_answers else None

    def __call__(self, length, step):
        inputs, targets = windows(self.prose, self.n_prose, length, step)
        if self.answers is None:
            return inputs, targets
        more, expected = answers(self.answers, self.n_answers, length, step)
        return torch.cat([inputs, more]), torch.cat([targets, expected])


def probe_windows(work):
    """A few windows of each held-out work, for the log only: nothing is chosen by them."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    rows = []
    for text in json.loads((work / "heldout.json").read_text()).values():
        ids = tokenizer.encode(text).ids
        rows += [ids[i : i + LENGTH + 1] for i in range(0, len(ids) - LENGTH, len(ids) // 5)][:4]
    return torch.tensor(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--name", default="ternary")
    parser.add_argument("--start", type=Path, help="a .gguf of the first run: learn to answer")
    parser.add_argument("--float", action="store_true", help="no quantisation, to compare with")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = grown(args.start, N_NEW) if args.start else Model(Config(ternary=not args.float))
    opts = optimizers(model)
    step, spent, path = 0, 0.0, args.work / f"{args.name}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        for opt, state in zip(opts, saved["optimizers"], strict=True):
            opt.load_state_dict(state)
        step, spent = saved["step"], saved["seconds"]

    def save():
        torch.save(
            {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in opts],
                "config": asdict(model.config),
                "step": step,
                "seconds": spent,
                "tokens": step * step_tokens,
            },
            path.with_suffix(".tmp"),
        )
        os.replace(path.with_suffix(".tmp"), path)

    batch = Batches(args.work, with_answers=args.start is not None)
    step_tokens = batch.n_prose + batch.n_answers
    probe = probe_windows(args.work)
    loss_of = torch.compile(model.loss, dynamic=False)
    budget, saved_at, losses = 3600 * args.hours, spent, []
    while spent < budget:
        started = time.monotonic()
        left = 1 - spent / budget
        rate = min(1.0, (step + 1) / WARMUP, left / DECAY)
        for opt, peak in zip(opts, (MATRIX_LR, ADAM_LR), strict=True):
            opt.param_groups[0]["lr"] = peak * rate * (START_RATE if args.start else 1)
        inputs, targets = batch(LENGTH if left > LONG else LONG_LENGTH, step)
        loss = loss_of(inputs, targets, torch.bfloat16)
        loss.backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        losses.append(loss.item())
        step += 1
        if step % PROBE_EVERY == 0 or step in (1, 10, 50, 100):
            with torch.no_grad():
                held = model.loss(probe[:, :-1], probe[:, 1:], torch.bfloat16).item()
            line = {
                "step": step,
                "tokens": step * step_tokens,
                "seconds": round(spent),
                "rate": round(rate, 3),
                "train": round(float(np.mean(losses)), 4),
                "heldout": round(held, 4),
            }
            with open(args.work / f"{args.name}.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            losses = []
            print(line, flush=True)
        spent += time.monotonic() - started
        if spent - saved_at > SAVE_EVERY:
            save()
            saved_at = spent
    save()


if __name__ == "__main__":
    main()
