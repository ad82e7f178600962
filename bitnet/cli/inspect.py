"""inspect: what a model file holds and how it will be used, from its headers alone."""
import json
import math
import re
from pathlib import Path

from ..config import ModelConfig
from ..formats import read_json
from ..formats.gguf import GGUFFile
from ..formats.packing import BLOCK
from ..formats.safetensors import member, open_folder
from ..loading import BUNDLED_MODEL
from .terminal import printable

USAGE = "[MODEL]"
WORDS = (0, 1)
FLOATS = ("F32", "F16", "BF16")


def configure(parser):
    parser.add_argument("--json", action="store_true", help="one JSON object, with every tensor")
    parser.add_argument("--tensors", action="store_true",
                        help="every tensor with its place in the file, not one line a kind")


def main(args):
    found = describe(args.words[0] if args.words else BUNDLED_MODEL)
    if args.json:
        print(json.dumps(found))
        return 0
    print(printable("\n".join(_table(found, args.tensors))))
    return 0


def describe(path):
    """A JSON-ready dict of a .gguf file or a Hugging Face folder. Raises FormatError, OSError."""
    path = Path(path)
    files, tensors, config = (_folder if path.is_dir() else _gguf)(path)
    kv_values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    entries = [_entry(t, next(f for f in files if f.path == t.path)) for t in tensors.values()]
    ternary = [e for e in entries if e["ternary"]]
    n_weights, n_bytes = (sum(e[key] for e in ternary) for key in ("weights", "bytes"))
    return {
        "path": str(path),
        "config": {name: getattr(config, name) for name in config.__dataclass_fields__}
        | {"sub_norms": config.sub_norms},
        "files": [{"path": str(file.path), "bytes": len(file.data)} for file in files],
        "ternary_weights": n_weights,
        "ternary_bits": 8 * n_bytes / n_weights if n_weights else None,
        "float_weights": sum(e["weights"] for e in entries) - n_weights,
        "kv_bytes_per_token": {"f16": 2 * kv_values, "f32": 4 * kv_values},
        "tensors": entries}


def _gguf(path):
    file = GGUFFile(path)
    head = "output.weight" in file.tensors
    embedding = file.tensors.get("token_embd.weight")
    n_rows = embedding.shape[0] if embedding else 0
    return [file], file.tensors, ModelConfig.from_gguf(file.metadata, path, n_rows, head)


def _folder(path):
    config = member(path, "config.json") or path / "config.json"
    generation = member(path, "generation_config.json")
    raw, defaults = read_json(config), read_json(generation) if generation else {}
    files, tensors = open_folder(path)
    return files, tensors, ModelConfig.from_hf(raw, defaults, config, "lm_head.weight" in tensors)


def _entry(tensor, file):
    """One tensor: a packed byte of a Hugging Face file (U8) holds four weights."""
    n_weights = math.prod(tensor.shape) * (4 if tensor.type == "U8" else 1)
    ternary = tensor.type in ("I2_S", "U8") or tensor.name.endswith("_proj.weight")
    return {"name": tensor.name, "type": tensor.type, "shape": list(tensor.shape),
            "weights": n_weights, "ternary": ternary, "use": _use(tensor, ternary),
            "file": str(tensor.path), "bytes": tensor.data.nbytes,
            "offset": tensor.data.ctypes.data - file.data.ctypes.data}


def _use(tensor, ternary):
    """How the engine takes it: kernels read the map, or a copy is made."""
    if ternary:
        aligned = tensor.type == "I2_S" and tensor.shape[-1] % BLOCK == 0
        return "in place" if aligned else "repacked once"
    return "in place" if len(tensor.shape) == 2 else "copied"


def _table(found, every):
    config = found["config"]
    yield found["path"]
    for file in found["files"]:
        yield f"  {file['bytes']:,} bytes  {Path(file['path']).name}"
    yield (f"family      {config['architecture']}: {config['num_hidden_layers']} layers, hidden "
           f"{config['hidden_size']}, ffn {config['intermediate_size']}, {config['hidden_act']}"
           f"{', sub-norms' if config['sub_norms'] else ''}")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    yield (f"attention   {heads} heads, {kv_heads} for keys and values, of {config['head_dim']}; "
           f"rope {config['rope_theta']:g}"
           f"{', interleaved' if config['rope_interleaved'] else ''}")
    yield (f"vocabulary  {config['vocab_size']:,}, "
           f"{'tied' if config['tie_word_embeddings'] else 'separate'} head; ends at "
           f"{', '.join(map(str, config['eos_token_ids'])) or 'no token'}")
    kv = found["kv_bytes_per_token"]
    yield (f"context     {config['max_position_embeddings']:,} tokens, a token's keys and values "
           f"{kv['f16']:,} bytes as f16, {kv['f32']:,} as f32")
    bits = found["ternary_bits"] or 0
    yield (f"weights     {found['ternary_weights']:,} ternary of {bits:.3f} bits in the file, "
           f"{found['float_weights']:,} others")
    yield ""
    yield from _every_tensor(found) if every else _kinds(found)


def _kinds(found):
    """One line for the tensors that differ only in their layer."""
    kinds = {}
    for e in found["tensors"]:
        key = (re.sub(r"\.\d+\.", ".*.", e["name"], count=1), e["type"], _size(e), e["use"])
        kinds.setdefault(key, []).append(e["bytes"])
    width = max((len(key[0]) for key in kinds), default=0)
    for (name, kind, size, use), n_bytes in kinds.items():
        yield f"{name:{width}} {len(n_bytes):4} x {kind:5}{size:>15}{sum(n_bytes):15,} bytes  {use}"


def _every_tensor(found):
    width = max((len(e["name"]) for e in found["tensors"]), default=0)
    for e in found["tensors"]:
        yield (f"{e['name']:{width}} {e['type']:5}{_size(e):>15}{e['bytes']:15,} bytes at "
               f"{e['offset']:<13,} {e['use']:13} {Path(e['file']).name}")


def _size(entry):
    return " x ".join(map(str, entry["shape"]))
