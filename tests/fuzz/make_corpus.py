"""Writes the corpus the fuzzer starts from: python tests/fuzz/make_corpus.py. Files named found-*
were found by the fuzzer and are left alone.

Each is a whole tiny model, since a case that is refused early teaches nothing about what comes
later: 3 to 14 KB, as small as the least sizes that bitnet takes allow.
"""

import json
import shutil
import struct
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
sys.path.append(str(HERE.parents[1]))  # last, as in worker.py

from fuzz import request_cases, targets  # noqa: E402
from fuzz.cases import CORPUS  # noqa: E402
from support import agent_requests as agents  # noqa: E402
from support import small_models as models  # noqa: E402
from support.caches import feed  # noqa: E402
from support.small_files import ARRAY, BOOL, GGUF, STRING, U32, numbers, strings, text  # noqa: E402

from bitnet.generation import session_file  # noqa: E402
from bitnet.runtime.pool import Pool  # noqa: E402

# Rows of whole blocks of 128 columns, which are used in place; and of 256, which some types need.
IN_PLACE = models.Shape(hidden=128, heads=1, head_dim=2, vocab=2)
WIDE = models.Shape(hidden=256, heads=1, head_dim=2, vocab=2)
BLOCKS_OF_64 = models.Shape(hidden=64, heads=1, vocab=2)
GROUPS_OF_64 = models.Shape(hidden=64, ffn=128, heads=1, head_dim=64)  # columns of every matrix


TEMPLATE = (  # what minijinja has not, and is rewritten
    "{% generation %}{{ '<|user|>%s' % messages[0].content }}"
    "{{ messages[0].content.rsplit('b')[0] | tojson }}{% endgeneration %}"
)


def gguf_models():
    """{name: small_files.GGUF}"""
    found = {arch: models.gguf_model(arch) for arch in ("bitnet-b1.58", "llama", "qwen3", "gemma3")}
    found["scales"] = with_scales(models.gguf_model("bitnet"))
    found["spm"] = with_spm()
    found["odd-tokens"] = with_odd_tokens(models.gguf_model("llama"))
    found["in-place"] = models.gguf_model("bitnet-b1.58", IN_PLACE, norms="F16")
    for rows, head in (
        ("F32", "BF16"), ("Q8_0", "IQ4_NL"), ("Q4_0", "Q4_1"), ("Q5_0", "Q5_1"),
    ):  # fmt: skip
        found[f"rows-{rows}-{head}"] = models.gguf_model("llama", rows=rows, head=head)
    mixed = {"attn_q": "IQ1_BN", "attn_k": "IQ2_BN", "attn_v": "IQ2_BN_R4", "ffn_gate": "Q2_0_G64",
             "ffn_up": "IQ2_BN_R4"}  # fmt: skip
    found["IQ_BN-Q2_0_G64"] = models.gguf_model("bitnet", BLOCKS_OF_64, mixed, norms="F16")
    q2_0 = dict.fromkeys(("attn_q", "attn_k", "ffn_gate"), "Q2_0_G128")
    found["Q2_0_G128"] = models.gguf_model("bitnet", IN_PLACE, q2_0, norms="F16")
    for name in ("PQ2_0", "PTQ1_0"):
        types = dict.fromkeys(models.LINEARS, "Q2_0_G64") | {"ffn_down": name}
        found[f"groups-{name}"] = models.gguf_model("llama", GROUPS_OF_64, types, "Q2_0_G64")
    wide = {"attn_q": "TQ1_0", "attn_k": "TQ2_0", "ffn_gate": "TQ1_0", "ffn_up": "TQ2_0"}
    found["TQ-Q6_K-Q4_K"] = models.gguf_model("llama", WIDE, wide, "Q6_K", "Q4_K", "F16")
    found["Q5_K"] = models.gguf_model("llama", WIDE, wide, "Q5_K", norms="F16")
    found["values"] = every_value()
    return found


def with_scales(model):
    """Tensors of +-1, and what they are multiplied with beside them."""
    for name in models.LINEARS:
        scale = struct.pack("<f", 0.25)
        model.tensors.append([f"blk.0.{name}.scale", [1], models.TYPE_IDS["F32"], scale, None])
    return model


def with_odd_tokens(model):
    """Two tokens of one text, an empty one, one a template writes, one that takes white space."""
    tokens = [*models.TOKENS[:2], models.TOKENS[0], "", "<|user|>", *models.TOKENS[5:]]
    model.set("tokenizer.ggml.tokens", ARRAY, strings(tokens))
    model.set("tokenizer.ggml.token_type", ARRAY, numbers(5, "i", [1] * 4 + [4] + [3] * 3))
    model.set("tokenizer.bitnet.rstrip", ARRAY, numbers(5, "i", [7]))
    model.set("tokenizer.chat_template", STRING, text(TEMPLATE))
    return model


def with_spm():
    """A model with a SentencePiece vocabulary, which needs a token for every byte."""
    pieces = bpe_pieces()
    shape = models.Shape(vocab=len(pieces))
    model = models.gguf_model("llama", shape, rows="Q4_0")
    tokens, scores, kinds = (list(column) for column in zip(*pieces, strict=True))
    model.remove("tokenizer.ggml.pre")
    model.remove("tokenizer.ggml.merges")
    model.set("tokenizer.ggml.model", STRING, text("llama"))
    model.set("tokenizer.ggml.tokens", ARRAY, strings(tokens))
    model.set("tokenizer.ggml.scores", ARRAY, numbers(6, "f", scores))
    model.set("tokenizer.ggml.token_type", ARRAY, numbers(5, "i", kinds))
    model.set("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", 1))
    model.set("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 2))
    model.set("tokenizer.ggml.add_space_prefix", BOOL, b"\1")
    return model


def every_value():
    """No model: every kind of value, in version 2, and an alignment of its own."""
    model = GGUF(
        version=2, tensors=[["a", [3], 0, bytes(12), None], ["b", [2, 2], 1, bytes(8), None]]
    )
    for type_id, code in enumerate("BbHhIif?"):
        model.set(f"k{type_id}", type_id, struct.pack(f"<{code}", 1))
        model.set(f"a{type_id}", ARRAY, numbers(type_id, code, [0, 1, 1]))
    for type_id, code in ((10, "Q"), (11, "q"), (12, "d")):
        model.set(f"k{type_id}", type_id, struct.pack(f"<{code}", 1))
    model.set("text", STRING, text("\u20ac"))
    model.set("strings", ARRAY, strings(["", "a", "\u20ac" * 20]))
    model.set("general.alignment", 4, struct.pack("<I", 32))
    return model


TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": 5 + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for i, token in enumerate(models.TOKENS[5:])
    ],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{L}+|\s+(?!\S)"}, "behavior": "Isolated",
             "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False},
        ],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": models.TOKENS[5], "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            models.TOKENS[5]: {"id": models.TOKENS[5], "ids": [5], "tokens": [models.TOKENS[5]]}
        },
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                "use_regex": True},
    "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(models.TOKENS[:5])},
              "merges": ["a b", "ab c"]},
}  # fmt: skip


def mlx_folder():
    """{file name: bytes} of codes in u32, with a scale and a bias for 64 columns."""
    shape = replace(GROUPS_OF_64, ffn=64)
    tensors, rng = models.hf_tensors("llama", shape, "ternary"), np.random.default_rng(5)
    for name, (type_name, (n_rows, *n_cols), _) in list(tensors.items()):
        if type_name == "F16":  # linear layers
            n_groups = n_cols[0] // 64
            codes = rng.choice(models.NO_CODE_3, n_rows * n_cols[0] // 4)
            tensors[name] = "U32", (n_rows, n_cols[0] // 16), codes.tobytes()
            for part, value in (("scales", 0.5), ("biases", -0.5)):
                data = np.full(n_rows * n_groups, value, "<f2").tobytes()
                tensors[name.replace("weight", part)] = "F16", (n_rows, n_groups), data
    quantization = {"group_size": 64, "bits": 2}
    return models.hf_files(
        "llama", shape, tensors=tensors, quantization=quantization, quantization_config=None
    )


def hf_models():
    """{name: {file name: bytes}}"""
    more = {
        "tokenizer.json": encoded(TOKENIZER),
        "tokenizer_config.json": encoded(
            {"add_bos_token": True, "chat_template": "{{ messages[0].content }}",
             "added_tokens_decoder": {"7": {"content": "<|eot_id|>", "special": True}}}
        ),
        "generation_config.json": encoded(
            {"bos_token_id": 5, "eos_token_id": [6, 7], "do_sample": True, "temperature": 0.6,
             "top_k": 2, "top_p": 0.9}
        ),
    }  # fmt: skip
    found = {"packed": models.hf_files("bitnet", linears="packed") | more}
    tensors = models.hf_tensors("llama", linears="packed")
    found["sharded"] = models.sharded(models.hf_files("llama", tensors=tensors), tensors)
    rope = {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    found["masters"] = models.hf_files("bitnet", quantization_config=models.ONLINE, **rope)
    found["masters"]["chat_template.jinja"] = TEMPLATE.encode()
    found["1bitLLM"] = models.hf_files("1bitLLM", linears="BF16")
    found["1bitLLM"]["tokenizer.model"] = sentencepiece_models()["unigram.model"]
    found["ternary"] = models.hf_files("llama", linears="ternary", quantization_config=None)
    found["mlx"] = mlx_folder()
    found["qwen3"] = models.hf_files("qwen3", linears="BF16") | {
        "config_sentence_transformers.json": encoded({"prompts": {"query": "Q: ", "document": ""}})
    }
    both = {"full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    found["gemma3"] = models.hf_files("gemma3", linears="BF16", rope_parameters=both)
    return found


UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


SPECIAL = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
LETTERS = [("\u2581", -3.0, NORMAL), ("a", -2.0, NORMAL), ("b", -2.5, NORMAL),
           ("\u2581a", -1.0, NORMAL), ("ab", -1.5, NORMAL)]  # fmt: skip


def bpe_pieces():
    """[(text, score, type)] with a piece for every byte."""
    added = [("<x>", 0.0, USER_DEFINED)]
    return SPECIAL + [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)] + LETTERS + added


def sentencepiece_models():
    """{name: bytes} of tokenizer.model: protobuf, as SentencePiece writes it."""
    return {
        "unigram.model": sentencepiece(SPECIAL + LETTERS, UNIGRAM),
        "bpe.model": sentencepiece(bpe_pieces(), BPE, byte_fallback=True),
    }


def sentencepiece(pieces, model_type, byte_fallback=False):
    """pieces: [(text, score, type)]."""
    messages = []
    for piece, score, kind in pieces:
        fields = message(1, piece.encode()) + b"\x15" + struct.pack("<f", score)
        messages.append(message(1, fields + number(3, kind)))
    trainer = number(3, model_type) + number(4, len(pieces)) + number(35, byte_fallback)
    trainer += number(40, 0) + number(41, 1) + number(42, 2)
    normalizer = message(1, b"identity") + number(3, 1) + number(4, 0) + number(5, 1)
    return b"".join(messages) + message(2, trainer) + message(3, normalizer)


def number(field, value):
    return varint(field << 3) + varint(value)


def message(field, raw):
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def saved_sessions():
    """{name: bytes} of saved sessions: one in part of a page, one in more."""
    found = {}
    for n in (3, 130):
        state = targets.empty_state(Pool(1 << 20))
        feed(state.parts["kv"].cache, n)
        state.length = n
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "session"
            session_file.save(path, range(n), state, targets.SESSION["fingerprint"])
            found[f"{n}-tokens.gguf"] = path.read_bytes()
    return found


def encoded(value):
    return json.dumps(value).encode()


def agent_requests():
    """{folder of the corpus: the body of a request}"""
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"name": "exec_command"}]}
    form = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
    reference = {"type": "item_reference", "id": "msg_1"}
    return {
        "responses/first": agents.CODEX,
        "responses/second": agents.CODEX | {"input": agents.CODEX_SECOND, "tool_choice": allowed},
        "responses/plain": {"input": "x", "text": {"format": form}, "metadata": {"a": "b"}},
        "responses/reference": {"input": [reference, {"role": "user", "content": "x"}]},
        "messages/first": agents.claude_code("a1"),
        "messages/second": agents.claude_code("b2", *agents.CLAUDE_CODE_LATER)
        | {"tool_choice": {"type": "tool", "name": "Read", "disable_parallel_tool_use": True}},
        "messages/plain": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    }


def corpus_files():
    """{path in the corpus: bytes}"""
    found = {f"gguf/{name}.gguf": model.bytes() for name, model in gguf_models().items()}
    found |= {f"sentencepiece/{name}": raw for name, raw in sentencepiece_models().items()}
    found |= {f"session/{name}": raw for name, raw in saved_sessions().items()}
    for name, part in models.split(gguf_models()["in-place"], 2).items():
        found[f"parts/split/{name}"] = part.bytes()
    for name, body in agent_requests().items():
        found[f"{name}/{request_cases.BODY}"] = json.dumps(body, indent=1).encode()
    for folder, files in hf_models().items():
        found |= {f"hf/{folder}/{name}": raw for name, raw in files.items()}
    for name, body in request_cases.CASES.items():
        found[f"requests/{name}/{request_cases.BODY}"] = encoded(body)
    return found


def main():
    for path in CORPUS.glob("*/*"):
        if not path.name.startswith("found-"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    models.write(CORPUS, corpus_files())


if __name__ == "__main__":
    main()
