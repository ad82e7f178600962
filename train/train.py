"""Train with quantisation in the loop; stop, kill or resume at any time.

    python train.py --work DIR --hours 1.75       # the same command resumes

Warm up, stay, decay: the learning rate is constant for nearly half of the time and then falls
linearly to zero. Ternary matrices are trained by Muon, the embedding and the norms by AdamW.
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
from model import Config, Model
from tokenizers import Tokenizer

TOKENS = 8192  # a step
LENGTH, LONG_LENGTH = 256, 512  # a window; attention is dear, so long ones come only at the end
DECAY, LONG = 0.55, 0.2  # the last parts of the time in which the rate falls, windows are long
WARMUP = 100  # steps
MATRIX_LR, ADAM_LR, WEIGHT_DECAY = 0.02, 3e-3, 0.1
PROBE_EVERY, SAVE_EVERY = 250, 180


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


def batch(tokens, length, step):
    """Random windows, the same for the same step whatever happened before."""
    rng = np.random.default_rng([7, step])
    starts = rng.integers(0, len(tokens) - length - 1, TOKENS // length)
    rows = torch.from_numpy(np.stack([tokens[s : s + length + 1] for s in starts]).astype(np.int64))
    return rows[:, :-1], rows[:, 1:]


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
    parser.add_argument("--float", action="store_true", help="no quantisation, to compare with")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Model(Config(ternary=not args.float))
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
                "tokens": step * TOKENS,
            },
            path.with_suffix(".tmp"),
        )
        os.replace(path.with_suffix(".tmp"), path)

    tokens = np.memmap(args.work / "train.bin", np.uint16, "r")
    probe = probe_windows(args.work)
    loss_of = torch.compile(model.loss, dynamic=False)
    budget, saved_at, losses = 3600 * args.hours, spent, []
    while spent < budget:
        started = time.monotonic()
        left = 1 - spent / budget
        rate = min(1.0, (step + 1) / WARMUP, left / DECAY)
        for opt, peak in zip(opts, (MATRIX_LR, ADAM_LR), strict=True):
            opt.param_groups[0]["lr"] = peak * rate
        inputs, targets = batch(tokens, LENGTH if left > LONG else LONG_LENGTH, step)
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
                "tokens": step * TOKENS,
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
