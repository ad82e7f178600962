"""What examples/deploy/ holds for operators works: the dashboard, the unit, the container file."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from support.paths import ROOT
from support.server_process import ServerProcess

from bitnet.cli.command import main
from bitnet.server.app import Application
from bitnet.server.options import Options

DEPLOY = ROOT / "examples" / "deploy"
# what Prometheus itself adds to all that it reads
ADDED = {"job", "instance", "le"}


# --------------------------------------------------------------------------------------- dashboard
@pytest.fixture(scope="module")
def series(model):
    """{name of a series: its labels} of a server that has answered."""
    application = Application([model], Options())
    application.service.metrics.count("/", 200, 0.1)
    names = {}
    for family in application.service.metrics.registry.collect():
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
        if family.name == "bitnet_pool_bytes":  # of a pool that is empty
            names.setdefault(family.name, {"model", "purpose"})
    return names


DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
QUERIES = [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
SELECTOR = re.compile(r"\b((?:bitnet|process)_\w+)(?:{([^}]*)})?")


@pytest.mark.parametrize("expression", EXPRESSIONS + QUERIES)
def test_every_expression_asks_for_what_there_is(series, expression):
    found = SELECTOR.findall(expression)
    assert found
    for name, matchers in found:
        assert name in series
        labels = {label.strip() for label in re.findall(r"([\w\s]+)(?:=~|!~|!=|=)\"", matchers)}
        assert labels <= series[name] | ADDED
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert {one.strip() for one in grouped.split(",")} <= series[name] | ADDED
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    is_counter = any(name.endswith(("_total", "_bucket")) for name, _ in found)
    assert is_counter == ("rate(" in expression)


def test_the_check_sees_what_is_not_there(series):
    for wrong in ("sum(bitnet_nothing)", 'bitnet_slots{purpose="x"}', "bitnet_tokens_total"):
        with pytest.raises(AssertionError):
            test_every_expression_asks_for_what_there_is(series, wrong)


def test_every_metric_of_ours_is_shown(series):
    shown = {name for text in EXPRESSIONS for name, _ in SELECTOR.findall(text)}
    families = {re.sub("_(bucket|sum|count|created)$", "", n) for n in series if n[:6] == "bitnet"}
    families -= {name.removesuffix("_total") for name in families if name.endswith("_total")}
    left = families - {re.sub("_bucket$", "", name) for name in shown}
    assert left == {"bitnet_sequences"}  # the sum of what is shown apart


def test_panels_do_not_overlap():
    taken, ids = set(), set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24 and panel["id"] not in ids
        assert panel["title"] and all(target["legendFormat"] for target in panel["targets"])
        taken |= cells
        ids.add(panel["id"])


# -------------------------------------------------------------------------------------------- unit
UNIT = (DEPLOY / "bitnet.service").read_text("utf-8")


def setting(name):
    return re.findall(rf"^{name}=(.*)$", UNIT, re.M)


def parsed(monkeypatch, *arguments):
    """The server.Options of a command line of `bitnet serve`."""
    chosen = []
    monkeypatch.setattr("bitnet.cli.serve.serve", lambda load, options: chosen.append(options))
    assert main(["serve", *arguments]) == 0
    return chosen[0]


def test_the_units_command(monkeypatch, tmp_path):
    (line,) = setting("ExecStart")
    program, *arguments = shlex.split(line)
    assert program == "/opt/bitnet/bin/bitnet" and arguments.pop(0) == "serve"
    (tmp_path / "keys").write_text("one of our keys\n")
    (tmp_path / "model.gguf").touch()
    moved = [a.replace("${CREDENTIALS_DIRECTORY}", str(tmp_path)) for a in arguments]
    moved = [a.replace("/srv/models", str(tmp_path)) for a in moved]
    options = parsed(monkeypatch, *moved)
    assert options.log_format == "json" and options.keys == ("one of our keys",)
    assert setting("Type") == ["notify"]
    assert float(*setting("TimeoutStopSec")) > options.drain_seconds


def test_systemd_accepts_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / "bitnet.service"
    unit.write_text(UNIT.replace("/opt/bitnet/bin/bitnet", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True, text=True, env=os.environ | {"SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "bitnet.service" in line]
    assert done.returncode == 0 and not complaints, done.stderr
    unit.write_text(unit.read_text().replace("WatchdogSec=30", "WatchdogSec=soon"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert "bitnet.service" in done.stderr  # it looks


def test_the_unit_is_shut_off(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=25", "--no-pager",
         str(DEPLOY / "bitnet.service")], capture_output=True, text=True,
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("an older systemd-analyze")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


# --------------------------------------------------------------------------------------- container
def steps():
    """[(instruction, its text)] of the container file."""
    text = (DEPLOY / "Containerfile").read_text("utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def last_stage():
    names = [name for name, _ in steps()]
    return steps()[len(names) - names[::-1].index("FROM") - 1 :]


def of(name, stage=None):
    return [text for instruction, text in stage or steps() if instruction == name]


def test_the_container_is_not_root_and_reads_its_model():
    stage = last_stage()
    user, _, group = of("USER", stage)[-1].partition(":")
    assert user.isdecimal() and int(user) > 0 and int(group) > 0
    assert of("VOLUME", stage) == ["/models"] and of("EXPOSE", stage) == ["8080"]
    names = [name for name, _ in stage]
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])  # its files are root's
    assert "ADD" not in [name for name, _ in steps()] and len(of("FROM")) == 2
    assert all(":" in text.split()[0] for text in of("FROM"))


def test_what_the_container_copies_is_there():
    """The package, and all that its build reads: what setup.py and pyproject.toml name as well."""
    copied = [shlex.split(t)[:-1] for t in of("COPY") if not t.startswith("--from")]
    sources = {source for one in copied for source in one}
    assert all((ROOT / source).exists() for source in sources)
    text = (ROOT / "setup.py").read_text() + (ROOT / "pyproject.toml").read_text()
    read = set(re.findall(r"(?:Path\(|readme = )\"([\w./]+\.\w+)\"", text)) | {"LICENSE"}
    assert {"tests/requirements.txt", "README.md"} <= read <= sources


@pytest.mark.parametrize("script", of("RUN"))
def test_what_the_container_runs_is_a_script(script):
    subprocess.run(["sh", "-n", "-c", script], check=True, capture_output=True)
    assert "sudo" not in script and "curl" not in script
    if "apt-get install" in script:
        assert "apt-get update" in script and "--no-install-recommends" in script


def test_the_containers_command(monkeypatch):
    program, command, *arguments = json.loads(*of("ENTRYPOINT"))
    assert (program, command) == ("/opt/bitnet/bin/bitnet", "serve")
    monkeypatch.delenv("BITNET_API_KEY", raising=False)
    assert main(["serve", *arguments]) == 1  # others can reach it: it wants a key
    monkeypatch.setenv("BITNET_API_KEY", "a key from outside")
    options = parsed(monkeypatch, *arguments)
    assert options.host == "0.0.0.0" and options.log_format == "json"
    assert options.port == int(*of("EXPOSE")) and options.keys == ("a key from outside",)


def test_the_containers_healthcheck(tmp_path):
    """As it stands, of a server on another port; and of none."""
    program, flag, code = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    assert program.endswith("/python") and flag == "-c" and ":8080/" in code

    def status(port):
        moved = code.replace(":8080/", f":{port}/")
        return subprocess.run([sys.executable, "-c", moved], capture_output=True).returncode

    with ServerProcess("--api-key", "a key of this server") as server:
        assert status(server.port) == 0
        port = server.port
    assert status(port) == 1


@pytest.mark.skipif("BITNET_RUN_CONTAINER" not in os.environ, reason=".ci/long container")
def test_the_containers_steps(tmp_path):
    """Its steps one after the other, with its paths below a folder; apt-get only says what it
    would install. Then its command."""
    roots, environment = {}, {}
    for name, text in steps():
        if name == "FROM":
            stage = text.partition(" AS ")[2] or "last"
            root = roots[stage] = tmp_path / stage
            root.mkdir()
        elif name == "COPY":
            *sources, target = shlex.split(text)
            base = ROOT
            if sources[0].startswith("--from="):
                base = roots[sources.pop(0).partition("=")[2]]
            for source in sources:
                copy(base / source.lstrip("/"), root / target.lstrip("/"), target[-1] == "/")
        elif name == "RUN":
            script = re.sub(r"(?<![\w.])/(src|opt|var)\b", rf"{root}/\1", text)
            script = script.replace("apt-get update", "true").replace("install -y", "install -s")
            script = script.replace("python -m venv", f"{sys.executable} -m venv")
            subprocess.run(["sh", "-euc", script], check=True, cwd=root)
        elif name == "ENV":
            environment |= dict(pair.split("=", 1) for pair in shlex.split(text))
    program, *arguments = json.loads(*of("ENTRYPOINT"))
    installed = roots["build"] / program.lstrip("/")  # where its first line says that Python is
    assert (roots["last"] / program.lstrip("/")).read_bytes() == installed.read_bytes()
    environment |= {"BITNET_CACHE": str(tmp_path / "cache"), "BITNET_API_KEY": "a key of ours"}
    process = subprocess.Popen(
        [installed, *arguments, "--port", "0", "--threads", "1"],
        env=os.environ | environment, cwd="/", stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = ""
        while "serving bundled on" not in line:
            line = process.stderr.readline()
            assert line, "it ended"
            assert json.loads(line)["level"] == "INFO"
    finally:
        process.terminate()
        assert process.wait(60) == 0


def copy(source, target, is_folder):
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
        return
    target = target / source.name if is_folder else target
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
