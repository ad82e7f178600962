"""Text that follows a schema, a grammar, an expression or a choice: in Python and by `run`."""

import json
import re
import subprocess
import sys

import pytest

import bitnet
from bitnet import GrammarError
from bitnet.cli import main

pytest.importorskip("llguidance")

USER = [{"role": "user", "content": "Who goes there?"}]
SCHEMA = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
HOT = {"temperature": 1.5, "max_tokens": 60}


@pytest.fixture(scope="module")
def model():
    with bitnet.load(threads=1, slots=4) as model:
        yield model


def test_json_by_a_schema(model):
    texts = [
        done.text for done in model.generate(["So", "He said", "And"], json_schema=SCHEMA, **HOT)
    ]
    assert all(json.loads(text).keys() == {"sure"} for text in texts)
    assert json.loads(model.chat(USER, json_schema=SCHEMA, **HOT).text).keys() == {"sure"}
    assert "".join(model.stream("So", json_schema=SCHEMA, seed=1, **HOT)) == (
        model.generate("So", json_schema=SCHEMA, seed=1, **HOT).text
    )
    assert model.generate("So", json_schema=True, max_tokens=1).text


@pytest.mark.parametrize("options", [
    {"regex": r"[ab]{2}-\d"}, {"choices": ["aa-1", "bb-2"]},
    {"grammar": 'root ::= [ab] [ab] "-" [0-9]'}, {"grammar": 'start: /[ab]{2}/ "-" /[0-9]/'},
])  # fmt: skip
def test_other_forms(model, options):
    for seed in range(4):
        done = model.generate("So", seed=seed, **HOT, **options)
        assert re.fullmatch(r"[ab]{2}-\d", done.text) and done.finish_reason == "stop"


@pytest.mark.parametrize(("options", "field"), [
    ({"json_schema": {"type": "nonsense"}}, "json_schema"), ({"json_schema": False}, "json_schema"),
    ({"json_schema": 5}, "json_schema"), ({"json_schema": {"contains": {}}}, "json_schema"),
    ({"regex": "("}, "regex"), ({"regex": 5}, "regex"), ({"grammar": "root ::= x"}, "grammar"),
    ({"choices": "ab"}, "choices"), ({"choices": []}, "choices"),
    ({"choices": ["\ud800"]}, "choices"),
])  # fmt: skip
def test_what_is_refused(model, options, field):
    with pytest.raises(GrammarError) as error:
        model.generate("So", **options)
    assert error.value.field == field and str(error.value).startswith(f"{field}: ")


def test_one_form_at_a_time(model):
    with pytest.raises(ValueError, match="regex: not together with json_schema"):
        model.generate("So", regex="a", json_schema=SCHEMA)
    with pytest.raises(ValueError, match="ignore_eos: not with a grammar"):
        model.generate("So", regex="a", ignore_eos=True)


def test_what_is_passed_over_is_logged(model, caplog):
    schema = {"type": "array", "items": {"const": 1}, "uniqueItems": True, "maxItems": 2}
    assert json.loads(model.generate("So", json_schema=schema, **HOT).text) in ([], [1], [1, 1])
    assert "json_schema: the schema's uniqueItems is not followed" in caplog.text


def test_without_the_extra():
    code = (
        "import sys; sys.modules['llguidance'] = None\nimport bitnet\n"
        "try: bitnet.load().generate('a', regex='a')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "regex: llguidance is missing: pip install 'bitnet-engine[grammar]'" in done.stdout


def test_limits_of_a_text(model):
    free = {"temperature": 0.9, "seed": 3}
    done = model.generate("So", max_tokens=40, **free)
    assert done.finish_reason == "stop" or done.completion_tokens == 40
    assert model.generate("So", max_tokens=40, ignore_eos=True, **free).completion_tokens == 40
    stop = done.token_ids[2]
    short = model.generate("So", max_tokens=40, stop_token_ids=[stop], **free)
    assert short.token_ids == done.token_ids[:3] and short.finish_reason == "stop"
    assert len(model.generate("So", choices=["a"], max_tokens=20, min_tokens=9).token_ids) < 9
    for wrong in ({"min_tokens": 9, "max_tokens": 8}, {"min_tokens": -1}, {"stop_token_ids": [-1]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model.generate("So", **wrong)


def test_min_tokens_with_the_screened_head(model):
    """The end tokens are forbidden there: the choice needs all logits."""
    for seed in range(6):
        options = {"seed": seed, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_tokens": 60}
        plain = model.generate("So", **options)
        longer = model.generate("So", min_tokens=50, **options)
        assert longer.completion_tokens >= 50
        n = plain.completion_tokens - 1  # alike up to where the end was
        assert longer.token_ids[:n] == plain.token_ids[:n]


def test_run_with_a_schema(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_NUM_THREADS", "1")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    assert main(["run", "--json-schema", str(file), "Who?"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"sure"}
    for text, reason in (("{", "no JSON"), ('{"type": 5}', "--json-schema: type must be")):
        file.write_text(text)
        assert main(["run", "--json-schema", str(file), "Who?"]) == 1
        assert reason in capsys.readouterr().err
