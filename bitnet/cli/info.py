"""info: what the engine found on this machine and chose: instruction set, threads, and why."""

import argparse
import json

import bitnet

USAGE = ""
N_ARGS = (0, 0)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")


def main(args: argparse.Namespace) -> int:
    facts = bitnet.info()
    if args.json:
        print(json.dumps(facts))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {_shown(value)}")
    return 0


def _shown(value):
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(entry)}" for key, entry in value.items())
    return "none" if value is None else str(value)
