"""The API as a type checker sees it: every keyword parameter is there, a wrong one is named."""

import inspect
import re
import runpy
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from support.paths import ROOT

import bitnet
from bitnet import verify
from bitnet.api import choices
from bitnet.api.load import LoadSettings
from bitnet.api.options import DEFAULTS, FORMS, GenerationOptions
from bitnet.checkpoints import checkpoint, convert
from bitnet.generation import perplexity
from bitnet.generation.sampling_fields import SAMPLING_FIELDS, Sampling
from bitnet.generation.scheduler import SPECULATION_METHODS
from bitnet.generation.stopping import CONTEXT_ENDS, StopConditions
from bitnet.runtime import cpu, kv_cache

PROGRAM = ROOT / "tests" / "api" / "typed_program.py"
HOOKS = {"logits_processors", "stopping"}  # a caller's own functions
GENERATING = [
    "generate", "stream", "chat", "chat_stream", "agenerate", "astream", "achat", "achat_stream",
    "request",
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    with bitnet.load(threads=1, context=256) as model:
        yield model


@pytest.fixture
def check(monkeypatch, tmp_path_factory):
    """What mypy --strict says of a program; the package itself is not checked here."""
    mypy = pytest.importorskip("mypy.api")  # of the dev extra
    monkeypatch.setenv("MYPYPATH", str(Path(bitnet.__file__).parents[1]))
    cache = tmp_path_factory.getbasetemp() / "mypy"

    def check(text):
        options = ["--strict", "--config-file=", f"--cache-dir={cache}", "--no-error-summary"]
        out, err, _ = mypy.run([*options, "--follow-imports=silent", "-c", text])
        assert not err
        return out

    return check


def test_a_user_s_program_type_checks(check):
    assert check(PROGRAM.read_text()) == ""


def test_a_user_s_program_runs():
    lines = runpy.run_path(str(PROGRAM))["main"]()
    assert len(lines) == 10 and lines[-1].endswith("of 256")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("model.generate('x', max_tokns=4)", r'"max_tokns" for .*"generate".*"max_tokens"'),
        ("model.generate('x', max_tokens='4')", 'No overload variant of "generate"'),
        ("model.stream('x', max_tokens='4')", r'"max_tokens".*"str"; expected "int"'),
        ("model.generate('x', context_end='shift')", "context_end"),
        ("model.stream('x', speculative='trie')", "speculative"),
        ("model.chat([], temprature=1)", r'"temprature" for "chat"'),
        ("model.session(capcity=5)", r'"capcity" for "session"'),
        ("bitnet.load(thread=1)", r'"thread" for "load"'),
        ("bitnet.load(threads='all')", "threads"),
        ("bitnet.load(kv_dtype='int4')", "kv_dtype"),
        ("bitnet.load(mapping='swap')", "mapping"),
        ("model.generate(['x'], max_tokens=4).text", r'"list\[Completion\]" has no attribute'),
        ("model.stream('x').completion.text", r'"None" has no attribute|has no attribute "text"'),
    ],
)
def test_what_is_wrong_is_an_error_of_the_checker(check, call, error):
    out = check(f"import bitnet\ndef f(model: bitnet.Model) -> None:\n    {call}\n")
    assert re.search(error, out), out


@pytest.mark.parametrize("name", GENERATING)
def test_a_wrong_keyword_is_named(model, name):
    function = getattr(model, name)
    own = {name for name in inspect.signature(function).parameters if name in ("parse_special",)}
    message = rf"{name}\(\) got an unexpected keyword argument 'max_tokns'.*'max_tokens'"
    with pytest.raises(TypeError, match=message):
        function([1], max_tokns=4)
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'zzz'$"):
        function([1], zzz=4, **dict.fromkeys(own, False))


def test_wrong_keywords_of_session_and_load(model):
    with pytest.raises(TypeError, match=r"session\(\) got an unexpected .*'capcity'"):
        model.session(capcity=5)
    with pytest.raises(TypeError, match=r"load\(\) got an unexpected .*'thread'"):
        bitnet.load(thread=1)


@pytest.mark.parametrize("name", GENERATING)
def test_signatures_have_every_name(name):
    parameters = inspect.signature(getattr(bitnet.Model, name)).parameters
    assert list(parameters)[-len(DEFAULTS) :] == list(GenerationOptions.__annotations__)
    assert parameters["max_tokens"].default == 256 and parameters["min_p"].default == 0.0
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def test_the_options_are_those_of_sampling_and_stopping():
    hints = get_type_hints(GenerationOptions)
    own = {f.name for f in fields(Sampling)} | {f.name for f in fields(StopConditions)}
    assert hints.keys() == (own - {"eos_ids"}) | {"speculative", *FORMS} | HOOKS
    for field in SAMPLING_FIELDS:
        has_none = field.is_models or field.default is None
        assert hints[field.name] == (field.kind | None if has_none else field.kind), field.name
    assert get_args(hints["context_end"]) == CONTEXT_ENDS
    (methods, _) = get_args(hints["speculative"])
    assert get_args(methods) == SPECULATION_METHODS


def test_sampling_s_fields_are_typed_as_they_are_checked():
    hints = get_type_hints(Sampling)
    for field in SAMPLING_FIELDS:
        kind = hints[field.name]
        assert kind in (field.kind, field.kind | None)
        assert type(field.lower) is type(field.upper) is field.kind


def test_the_settings_of_load_are_its_arguments():
    _, *parameters = inspect.signature(bitnet.load).parameters.values()
    given = [(f.name, f.default, f.type) for f in fields(LoadSettings) if f.name != "fair"]
    assert given == [(p.name, p.default, p.annotation) for p in parameters]


def test_what_help_lists_is_what_the_engine_has():
    """choices.py, which imports nothing of it."""
    assert tuple(kv_cache.DTYPES) == choices.KV_DTYPES
    assert choices.DEFAULT_KV_DTYPE == kv_cache.DEFAULT_KV_DTYPE
    assert tuple(checkpoint.I2_S_LAYOUTS) == choices.LAYOUTS
    assert choices.DEFAULT_LAYOUT == checkpoint.DEFAULT_LAYOUT
    assert tuple(checkpoint.ACTIVATIONS) == choices.ACTIVATIONS
    assert choices.MAX_THREADS == cpu.MAX_THREADS and choices.AUTO_LAYOUT == verify.AUTO
    assert (choices.RECIPES, choices.DEFAULT_WINDOW) == (
        perplexity.RECIPES,
        perplexity.DEFAULT_CONTEXT,
    )
    assert tuple(convert.HEAD_TYPES) == choices.HEAD_TYPES
    assert tuple(convert.GROUP_TYPES) == choices.GROUP_TYPES


def test_an_empty_stop_string_is_refused(model):
    for stop in ("", ("",)):
        with pytest.raises(ValueError, match="stop: \\'\\'"):
            model.generate("a", stop=stop)
