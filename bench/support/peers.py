"""Other engines behind one interface, for bench_peers.py.

A peer is made with (path, n_threads); MODULES are what it needs installed, `about` says which
engine it is and what it computes. prefill(n) reads a prompt of n tokens, decode(n) that many tokens
one by one after the last prompt, and drops them: both return seconds. RuntimeError or ValueError:
it cannot run here, with the reason. Those that use no path have 2B-4T's shape and any weights.
"""

import json
import os
import subprocess
from importlib.metadata import version
from unittest import mock

import numpy as np

from . import synthetic
from .bounds import seconds_of

CONTEXT = 1024  # tokens of keys and values that a peer has room for
COMPUTES = {  # llama.cpp, by the type that names the file
    "tq2_0": "TQ2_0, activations int8 in blocks of 256, F16 head",
    "q2_0_g64": "Q2_0 in groups of 64, activations int8 in blocks of 32",
}


def prompt(n_tokens):
    return [*range(1, n_tokens + 1)]


class LlamaCpp:
    """llama-cpp-python, in this process."""

    MODULES = ("llama_cpp",)

    def __init__(self, path, n_threads):
        import llama_cpp

        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=CONTEXT,
            n_batch=512,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            verbose=False,
        )
        system = llama_cpp.llama_print_system_info().decode()
        self.about = f"llama-cpp-python {llama_cpp.__version__}, {COMPUTES[path.stem]}, {system}"

    def prefill(self, n_tokens):
        self._llama.n_tokens = 0
        return seconds_of(lambda: self._llama.eval(prompt(n_tokens)))

    def decode(self, n_tokens):
        begin = self._llama.n_tokens

        def steps():
            for token in prompt(n_tokens):
                self._llama.eval([token])

        seconds = seconds_of(steps)
        self._llama.n_tokens = begin
        return seconds

    def close(self):
        self._llama.close()


class Transformers:
    """Transformers in bfloat16, in this process. Its weights are dense, 4.8 GB: what it runs where
    nothing has to be unpacked or made ternary on the way, which would only take longer."""

    MODULES = ("torch", "transformers")

    def __init__(self, path, n_threads):
        import torch
        import transformers

        shape = synthetic.Shape()
        config = transformers.BitNetConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            vocab_size=shape.vocab,
            tie_word_embeddings=True,
        )
        torch.set_num_threads(n_threads)
        self._torch, self._new_cache = torch, transformers.DynamicCache
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        self._model, self._cache = model.eval(), None
        self.about = (
            f"transformers {transformers.__version__}, torch {torch.__version__}, "
            "dense bfloat16 weights, activations not rounded"
        )

    def _feed(self, ids):
        with self._torch.inference_mode():
            ids = self._torch.tensor([ids])
            self._model(input_ids=ids, past_key_values=self._cache, logits_to_keep=1)

    def prefill(self, n_tokens):
        self._cache = self._new_cache()
        return seconds_of(lambda: self._feed(prompt(n_tokens)))

    def decode(self, n_tokens):
        def steps():
            for token in prompt(n_tokens):
                self._feed([token])

        seconds = seconds_of(steps)
        self._cache.crop(-n_tokens)
        return seconds

    def close(self):
        self._model = self._cache = None


class Litespark:
    """litespark-inference without torch, in this process: packed weights, the head in the 4 bits
    that it takes unless told otherwise.

    Prompts go in parts of 64 tokens: of longer ones version 1.0.3 computes no product at all (its
    kernel for AVX-512 returns at once), which looks like 600 tokens/s.
    """

    MODULES = ("litespark_inference.torchless", "threadpoolctl")
    PART = 64

    def __init__(self, path, n_threads):
        import threadpoolctl
        from litespark_inference.torchless import kernel, model, runtime

        kernel.ensure_built()
        # of its kernels, and of NumPy, which does its attention
        self._limit = threadpoolctl.threadpool_limits(n_threads)
        self._runtime, self._model = runtime, self._random_model(model)
        self._state = runtime.init_state(self._model, CONTEXT)
        self.about = (
            f"litespark-inference {version('litespark-inference')}, 2-bit weights, activations "
            "int8 with one scale a token, head rounded to 4 bits, f32 keys and values"
        )

    @staticmethod
    def _random_model(kinds):
        shape, rng = synthetic.Shape(), np.random.Generator(np.random.SFC64(0))
        queries, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

        def matrix(n_rows, n_cols):
            packed = synthetic.codes(rng, n_rows * n_cols // 4).reshape(n_rows, -1)
            scale = (n_cols * 2 / 3) ** -0.5
            return kinds.PackedProjection(
                packed, np.zeros(n_rows, np.int32), scale, in_features=n_cols, out_features=n_rows
            )

        def norm(n):
            return np.full(n, 0x3F80, np.uint16)  # 1 in bfloat16

        layers = [
            kinds.PackedLayer(
                q_proj=matrix(queries, shape.hidden),
                k_proj=matrix(kv, shape.hidden),
                v_proj=matrix(kv, shape.hidden),
                o_proj=matrix(shape.hidden, queries),
                gate_proj=matrix(shape.ffn, shape.hidden),
                up_proj=matrix(shape.ffn, shape.hidden),
                down_proj=matrix(shape.hidden, shape.ffn),
                input_norm=norm(shape.hidden),
                post_attn_norm=norm(shape.hidden),
                attn_sub_norm=norm(queries),
                ffn_sub_norm=norm(shape.ffn),
            )
            for _ in range(shape.layers)
        ]
        config = kinds.BitNetConfig(
            hidden_size=shape.hidden,
            num_layers=shape.layers,
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            intermediate_size=shape.ffn,
            vocab_size=shape.vocab,
            max_position_embeddings=shape.context,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
        )
        return kinds.PackedBitNetModel(
            config=config,
            embed_tokens=None,
            final_norm=norm(shape.hidden),
            layers=layers,
            embed_int4=rng.integers(0, 256, (shape.vocab, shape.hidden // 2), np.uint8),
            embed_scale=np.full(shape.vocab, shape.hidden**-0.5 / 4, np.float32),
        )

    def prefill(self, n_tokens):
        self._state.pos = 0
        ids = prompt(n_tokens)

        def steps():
            for i in range(0, n_tokens, self.PART):
                part = ids[i : i + self.PART]
                self._runtime.forward_prefill(self._model, self._state, part)

        return seconds_of(steps)

    def decode(self, n_tokens):
        begin = self._state.pos

        def steps():
            for token in prompt(n_tokens):
                self._runtime.forward_one(self._model, self._state, token)

        seconds = seconds_of(steps)
        self._state.pos = begin
        return seconds

    def close(self):
        self._model = self._state = None
        self._limit.restore_original_limits()


class MlxLm:
    """mlx-lm's BitNet on the CPU, in this process. Its ternary layer is a Metal kernel and nothing
    else, so its graph runs with dense layers in bfloat16 here, 4.8 GB."""

    MODULES = ("mlx.core", "mlx_lm")

    def __init__(self, path, n_threads):
        import mlx.core as mx
        import mlx.nn as nn
        import mlx.utils
        from mlx_lm.models import bitnet, cache

        mx.set_default_device(mx.cpu)
        shape = synthetic.Shape()
        args = bitnet.ModelArgs(
            model_type="bitnet",
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.ffn,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            rms_norm_eps=1e-5,
            vocab_size=shape.vocab,
            rope_theta=500000.0,
        )
        with mock.patch.object(bitnet, "BitLinear", nn.Linear):
            self._model = bitnet.Model(args)
        parameters = mlx.utils.tree_map(  # before any is made, which would take as much again
            lambda w: mx.full(w.shape, 0.01, mx.bfloat16), self._model.parameters()
        )
        self._model.update(parameters)
        mx.eval(parameters)
        self._mx, self._caches, self._cache = mx, cache, None
        self.about = (
            f"mlx-lm {version('mlx-lm')}, mlx {version('mlx')} on the CPU, dense bfloat16 weights, "
            "activations not rounded, one thread whatever is asked for"
        )

    def _feed(self, ids):
        hidden = self._model.model(self._mx.array([ids]), self._cache)
        head = self._model.model.embed_tokens
        self._mx.eval(head.as_linear(hidden[:, -1]), [layer.state for layer in self._cache])

    def prefill(self, n_tokens):
        self._cache = self._caches.make_prompt_cache(self._model)
        return seconds_of(lambda: self._feed(prompt(n_tokens)))

    def decode(self, n_tokens):
        def steps():
            for token in prompt(n_tokens):
                self._feed([token])

        seconds = seconds_of(steps)
        self._caches.trim_prompt_cache(self._cache, n_tokens)
        return seconds

    def close(self):
        self._model = self._cache = None


class LlamaBench:
    """The llama-bench program that LLAMA_BENCH names; it decodes from an empty context."""

    MODULES = ()

    def __init__(self, path, n_threads):
        if "LLAMA_BENCH" not in os.environ:
            raise RuntimeError("LLAMA_BENCH names no program")
        options = ["-m", str(path), "-t", str(n_threads), "-r", "1", "-o", "json"]
        self._command = [os.environ["LLAMA_BENCH"], *options]
        self.about = " ".join(options)

    def _run(self, *options):
        out = subprocess.run([*self._command, *options], check=True, capture_output=True).stdout
        return json.loads(out)[0]["avg_ts"]

    def prefill(self, n_tokens):
        return n_tokens / self._run("-p", str(n_tokens), "-n", "0")

    def decode(self, n_tokens):
        return n_tokens / self._run("-p", "0", "-n", str(n_tokens))

    def close(self):
        pass


PEERS = {
    "llama-cpp-python": LlamaCpp,
    "transformers": Transformers,
    "litespark-inference": Litespark,
    "mlx-lm": MlxLm,
    "llama-bench": LlamaBench,
}
