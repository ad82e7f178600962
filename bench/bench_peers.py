"""Other engines on the same shape, each in turn with ours, round by round, in one run.

llama.cpp by its Python package, where that is installed, on a TQ2_0 file written here. Transformers
in bfloat16, where that and torch are installed. Any engine with a llama-bench program by its path
in LLAMA_BENCH, on the file LLAMA_BENCH_MODEL (without it the I2_S file of these benchmarks).
"""

import json
import os
import subprocess

import numpy as np
import pytest
from support import synthetic
from support.bounds import Bounds, seconds_of

import bitnet
from bitnet.runtime import cpu

N_DECODED = 16
N_CONTEXT = 128  # tokens before those; llama-bench begins with an empty context
THREADS = sorted({1, min(2, len(cpu.affinity()))})


class LlamaCpp:
    """llama-cpp-python, in this process."""

    def __init__(self, path, n_threads):
        import llama_cpp

        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=1024,
            n_batch=512,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            verbose=False,
        )
        system = llama_cpp.llama_print_system_info().decode()
        self.about = f"llama-cpp-python {llama_cpp.__version__}, TQ2_0, F16 head, {system}"

    def prefill(self, n_tokens):
        self._llama.n_tokens = 0
        return seconds_of(lambda: self._llama.eval([*range(1, n_tokens + 1)]))

    def decode(self, n_tokens):
        if self._llama.n_tokens < N_CONTEXT:
            self.prefill(N_CONTEXT)
        self._llama.n_tokens = N_CONTEXT

        def steps():
            for token in range(1, n_tokens + 1):
                self._llama.eval([token])

        return seconds_of(steps)

    def close(self):
        self._llama.close()


class Transformers:
    """Transformers in bfloat16, in this process. Its weights are dense, 4.8 GB: what it runs where
    nothing has to be unpacked or made ternary on the way, which would only take longer."""

    def __init__(self, n_threads):
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
        self.about = f"transformers {transformers.__version__}, torch {torch.__version__}, bfloat16"

    def _feed(self, ids):
        with self._torch.inference_mode():
            ids = self._torch.tensor([ids])
            self._model(input_ids=ids, past_key_values=self._cache, logits_to_keep=1)

    def prefill(self, n_tokens):
        self._cache = self._new_cache()
        return seconds_of(lambda: self._feed([*range(1, n_tokens + 1)]))

    def decode(self, n_tokens):
        if self._cache is None or self._cache.get_seq_length() < N_CONTEXT:
            self.prefill(N_CONTEXT)
        if more := self._cache.get_seq_length() - N_CONTEXT:
            self._cache.crop(-more)

        def steps():
            for token in range(1, n_tokens + 1):
                self._feed([token])

        return seconds_of(steps)

    def close(self):
        self._model = self._cache = None


class LlamaBench:
    """A llama-bench program."""

    def __init__(self, program, path, n_threads):
        self._command = [program, "-m", str(path), "-t", str(n_threads), "-r", "1", "-o", "json"]
        self.about = " ".join(self._command[1:])

    def _run(self, *options):
        out = subprocess.run([*self._command, *options], check=True, capture_output=True).stdout
        return json.loads(out)[0]["avg_ts"]

    def prefill(self, n_tokens):
        return n_tokens / self._run("-p", str(n_tokens), "-n", "0")

    def decode(self, n_tokens):
        return n_tokens / self._run("-p", "0", "-n", str(n_tokens))

    def close(self):
        pass


@pytest.fixture(scope="module")
def tq2_0_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("peer") / "tq2_0.gguf"
    synthetic.write(path, architecture="bitnet", type_name="TQ2_0")
    yield path
    path.unlink()


@pytest.fixture(scope="module", params=THREADS, ids=lambda n: f"{n}t")
def model(synthetic_path, request):
    with bitnet.load(synthetic_path, threads=request.param, context=1024) as model:
        model.generate([1], max_tokens=1)  # the first pass also looks for damaged weights
        yield model


@pytest.fixture(scope="module", params=["llama-cpp-python", "transformers", "llama-bench"])
def peer(model, request, synthetic_path):
    if request.param == "llama-cpp-python":
        pytest.importorskip("llama_cpp")
        peer = LlamaCpp(request.getfixturevalue("tq2_0_path"), model.threads)
    elif request.param == "transformers":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        peer = Transformers(model.threads)
    else:
        if "LLAMA_BENCH" not in os.environ:
            pytest.skip("LLAMA_BENCH names no program")
        path = os.environ.get("LLAMA_BENCH_MODEL", synthetic_path)
        peer = LlamaBench(os.environ["LLAMA_BENCH"], path, model.threads)
    yield peer
    peer.close()


def ours(tokens_s, peer_tokens_s, peer):
    return {"peer_tokens_s": peer_tokens_s, "ratio": tokens_s / peer_tokens_s, "peer": peer.about}


def test_decode(model, peer, timed, figures):
    with model.session() as session, Bounds(model) as bounds:
        session.feed([*range(1, N_CONTEXT + 1)])

        def decode():
            session.trim(N_CONTEXT)
            for token in range(1, N_DECODED + 1):
                session.best([token])

        def reference():
            return np.array([peer.decode(N_DECODED), *bounds.measure()])

        seconds, (other, *measured) = timed(decode, reference)
        tokens_s = N_DECODED / seconds
        figures(**bounds.figures(measured, tokens_s), **ours(tokens_s, N_DECODED / other, peer))


@pytest.mark.parametrize("n_tokens", [128, 512])
def test_prefill(model, peer, n_tokens, timed, figures):
    with model.session() as session:

        def prefill():
            session.trim(0)
            session.best([*range(1, n_tokens + 1)])  # and the likeliest token after them

        rounds = 5 if n_tokens <= 128 else 2  # of 20 s
        seconds, other = timed(prefill, lambda: peer.prefill(n_tokens), rounds)
        tokens_s = n_tokens / seconds
        figures(tokens_s=tokens_s, **ours(tokens_s, n_tokens / other, peer))
