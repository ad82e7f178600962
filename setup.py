"""The extension modules, the flags of each instruction set, the extras; else see pyproject.toml."""

import os
import platform
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CHECK = os.environ.get("BITNET_CHECK") == "1"  # every index and view is checked
SANITIZE = os.environ.get("BITNET_SANITIZE") == "1"  # gcc's address and undefined sanitizers

# module of bitnet/kernels: (its header in kernels/simd, what the compiler may use)
ISAS = {"generic": ("scalar.h", [])}
if platform.machine() in ("x86_64", "AMD64"):
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    ISAS |= {
        "avx2": ("avx2.h", AVX2),
        "avxvnni": ("avx2.h", [*AVX2, "-mavxvnni"]),
        "avx512": ("avx512.h", ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mf16c"]),
    }
elif platform.machine() in ("aarch64", "arm64"):
    ISAS |= {
        "neon": ("neon.h", []),
        "neon_dotprod": ("neon.h", ["-march=armv8.2-a+dotprod"]),
    }

# No multiply-add is fused by the compiler: every instruction set must give the same bits.
FLAGS = ["-O3", "-g0", "-std=gnu11", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"]
OPENMP = ["-Xclang", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
OPENMP_LINK = ["-lomp"] if sys.platform == "darwin" else ["-fopenmp"]
LINK = []
if SANITIZE:
    sanitizers = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
    FLAGS += [*sanitizers, "-fno-sanitize-recover=undefined"]
    LINK += sanitizers

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": CHECK,
    "initializedcheck": CHECK,
    "wraparound": False,
    "cdivision": True,
    "embedsignature": True,
    "auto_pickle": False,  # nothing here can be: pointers into memory of this process
}

# Here and not in pyproject.toml, where either all extras are read from files or none is.
EXTRAS = {
    "test": Path("tests/requirements.txt").read_text().splitlines(),
    "server": ["starlette>=0.49.1", "uvicorn>=0.31", "msgspec>=0.18", "prometheus_client>=0.22"],
    "chat": ["prompt_toolkit>=3.0.40", "rich>=13"],  # `bitnet chat`: editing, Markdown
    "grammar": ["llguidance>=1.7"],  # schemas and tools of the server
    "hub": ["huggingface_hub>=0.23"],  # `bitnet pull`; tokenizers brings one along today
    "eval": ["lm_eval>=0.4.13"],  # bitnet/lm_eval
    "plot": ["matplotlib>=3.8"],  # --plot of bench, compare and memory; bench/support/plot*.py
    # the site: `mkdocs build --strict`; its page of requests is made of the server's structs
    "docs": ["bitnet-engine[server]", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"],
    "dev": [
        "bitnet-engine[test,server,chat,grammar,hub]",
        *("Cython>=3.1", "setuptools>=77", "ruff", "cython-lint", "mypy"),
        # what tests compare with
        *("gguf", "safetensors", "sentencepiece", "openai", "anthropic", "threadpoolctl"),
        "jsonschema",
        *("fastapi", "pyte"),  # of examples/fastapi_app.py, docs/scripts/terminal.py
        *("openapi-spec-validator", "trustme"),  # of /openapi.json and TLS
    ],
}

KERNELS = Path("bitnet/kernels")
KERNEL_SOURCES = [str(p) for p in sorted(KERNELS.rglob("*")) if p.suffix in {".h", ".pxi"}]
SHARED = ["bitnet/kernels/kv_page.h", "bitnet/kernels/group_rows.h"]  # what lies where in memory


def extension(name, flags=(), link=(), depends=SHARED, macros=()):
    return Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        include_dirs=[str(KERNELS)],
        define_macros=list(macros),
        depends=list(depends),
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=[*LINK, *link],
    )


# Where a loop of a few lines of the instruction cache begins would else be chance: with the same
# instructions at 32 bytes past a line, decode of a 2B model on a Zen 3 had 0.93 times the speed.
ALIGNED = ["-falign-functions=64"]


def kernels(isa, header, flags):
    """The kernels compiled for an instruction set; simd.h includes its header."""
    macros = [("BITNET_SIMD", f'"{header}"')]
    return extension(f"bitnet.kernels.{isa}", [*flags, *ALIGNED], (), KERNEL_SOURCES, macros)


setup(
    ext_modules=cythonize(
        [
            extension("bitnet.runtime.cpu"),
            extension("bitnet.runtime.float_mode"),
            extension("bitnet.runtime.step_lock"),
            extension("bitnet.runtime.mmap"),
            extension("bitnet.runtime.pool"),
            extension("bitnet.runtime.kv_cache"),
            extension("bitnet.runtime.self_test"),
            extension("bitnet.runtime.dispatch"),
            extension("bitnet.compute.operands"),
            extension("bitnet.compute.gumbel"),
            *(
                extension(f"bitnet.compute.{name}", OPENMP, OPENMP_LINK)
                for name in ("threads", "grouped", "elementwise", "linear", "attention")
            ),
            extension("bitnet.compute.screen_bounds", OPENMP, OPENMP_LINK),
            extension("bitnet.compute.delta_net", OPENMP, OPENMP_LINK),
            extension("bitnet.compute.rotation", OPENMP, OPENMP_LINK),
            extension("bitnet.compute.lm_head", OPENMP, OPENMP_LINK),
            *(kernels(isa, *how) for isa, how in ISAS.items()),
        ],
        compiler_directives=DIRECTIVES,
        force=CHECK or SANITIZE,
    ),
    extras_require=EXTRAS,
    options={"build_ext": {"parallel": min(4, os.cpu_count() or 1)}},
)
