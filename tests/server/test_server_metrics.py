"""/metrics: as Prometheus's own parsers read it, and what its numbers are."""

import asyncio
import re

import pytest
from support.paths import DATA
from support.server_process import NO_END, ServerProcess

import bitnet
from bitnet.server.app import Application
from bitnet.server.options import Options
from bitnet.version import VERSION

openmetrics = pytest.importorskip("prometheus_client.openmetrics.parser")
text_format = pytest.importorskip("prometheus_client.parser")

EMBEDDER = next((DATA / "gguf_i2_s_embedding_qwen3").glob("*.gguf"))


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--slots", 2, "--speculative", "ngram") as one:
        yield one


def families(server, accept=None):
    """{name: family} as Prometheus's parser of the format reads it."""
    answer = server.get("/metrics", **({"accept": accept} if accept else {}))
    media_type = answer.headers.get_content_type()
    assert media_type == (accept or "text/plain").partition(";")[0]
    parser = text_format if accept is None else openmetrics
    found = list(parser.text_string_to_metric_families(answer.body.decode()))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def value(found, sample, **labels):
    """The sample of this name with these labels, there must be one."""
    (one,) = [
        s.value
        for family in found.values()
        for s in family.samples
        if s.name == sample and labels.items() <= s.labels.items()
    ]
    return one


@pytest.mark.parametrize("accept", [None, "application/openmetrics-text; version=1.0.0"])
def test_both_formats_and_the_conventions_of_names(server, accept):
    server.chat()
    kinds = set()
    for name, family in families(server, accept).items():
        assert re.fullmatch(r"(bitnet|process)_[a-z_]+", name) and family.documentation
        kinds.add(family.type)
        if family.type == "counter":
            assert all(s.name.endswith(("_total", "_created")) for s in family.samples)
        if family.type == "histogram":
            assert name.endswith("_seconds")
        assert ("bytes" in name) == name.endswith("_bytes")
    assert kinds >= {"counter", "gauge", "histogram"}


def test_what_is_counted(server):
    before = families(server)
    text = "the cat the cat the cat the cat the cat the cat "
    replies = [
        server.post("/v1/completions", {"prompt": text, "max_tokens": 40, "temperature": 0,
                                        "logit_bias": NO_END, "seed": i, "n": n}).json
        for i, n in ((1, 1), (2, 2))
    ]  # fmt: skip
    after = families(server)

    def grown(sample, **labels):
        return value(after, sample, **labels) - value(before, sample, **labels)

    model = {"model": "bundled"}
    usage = [reply["usage"] for reply in replies]
    cached = [one["prompt_tokens_details"]["cached_tokens"] for one in usage]
    for kind, n in (
        ("prompt", sum(one["prompt_tokens"] for one in usage)),
        ("cached", sum(cached)),
        ("generated", sum(one["completion_tokens"] for one in usage)),
    ):
        assert grown("bitnet_tokens_total", kind=kind, **model) == n
    assert cached[1] > 0
    assert grown("bitnet_prefix_lookups_total", **model) == 2
    assert grown("bitnet_prefix_hits_total", **model) == sum(n > 0 for n in cached)
    timings = [reply["timings"] for reply in replies]
    assert all(0 < one["draft_n_accepted"] <= one["draft_n"] for one in timings)
    offered, accepted = (sum(one[k] for one in timings) for k in ("draft_n", "draft_n_accepted"))
    assert grown("bitnet_draft_tokens_total", **model) == offered
    assert grown("bitnet_draft_accepted_tokens_total", **model) == accepted
    for name, n in (("first_token", 2), ("generation", 2), ("queue", 3)):
        assert grown(f"bitnet_{name}_seconds_count", **model) == n
    pieces = grown("bitnet_between_tokens_seconds_count", **model)
    assert 0 < pieces < usage[0]["completion_tokens"] + usage[1]["completion_tokens"]
    seconds = {
        name: grown(f"bitnet_{name}_seconds_sum", **model)
        for name in ("queue", "first_token", "generation", "between_tokens")
    }
    assert seconds["queue"] <= 3 * seconds["first_token"] <= 3 * seconds["generation"]
    assert seconds["between_tokens"] <= 2 * seconds["generation"]
    route = {"route": "/v1/completions"}
    assert value(after, "bitnet_requests_total", status="200", **route) == 2
    assert value(after, "bitnet_request_seconds_count", **route) == 2
    assert value(after, "bitnet_request_seconds_sum", **route) >= seconds["generation"]


def test_without_drafts_no_reply_speaks_of_them():
    with ServerProcess() as server:
        assert not {"draft_n", "draft_n_accepted"} & server.chat().json["timings"].keys()
        assert value(families(server), "bitnet_draft_tokens_total", model="bundled") == 0


def test_running_and_waiting_apart():
    with ServerProcess("--slots", 2) as server:
        stream = server.start_stream(n=16, max_tokens=480)
        found = families(server)
        has_place, running, waiting, limit, slots = (
            value(found, f"bitnet_{name}")
            for name in ("sequences", "sequences_running", "sequences_waiting", "sequences_limit",
                         "slots")
        )  # fmt: skip
        assert (running, limit, slots) == (2, 50, 2)
        assert 0 < waiting <= has_place - running <= 14
        stream.close()
        server.wait_until_idle()
        found = families(server)
        assert value(found, "bitnet_sequences_running") == 0
        assert value(found, "bitnet_sequences_waiting") == 0
        # what was computed for a client that left counts, its times are none of a whole reply
        assert value(found, "bitnet_tokens_total", kind="generated") > 0
        assert value(found, "bitnet_generation_seconds_count") == 0
        assert value(found, "bitnet_queue_seconds_count") >= 2
        assert value(found, "bitnet_cancelled_total") == 1


def test_two_models_have_labels_of_their_own():
    options = ("--embedding-model", EMBEDDER, "--embedding-name", 'vec"tors\\')
    with ServerProcess(*options, "--model-name", "one", "--model-name", "another") as server:
        assert server.chat().status == 200
        n = server.post("/v1/embeddings", {"input": "who goes"}).json["usage"]["prompt_tokens"]
        found = families(server)
        assert value(found, "bitnet_tokens_total", model='vec"tors\\', kind="prompt") == n
        assert value(found, "bitnet_tokens_total", model="one", kind="prompt") > 0
        for name in ("one", 'vec"tors\\'):
            limit = value(found, "bitnet_pool_limit_bytes", model=name)
            in_use = [
                s.value for s in found["bitnet_pool_bytes"].samples if s.labels["model"] == name
            ]
            assert 0 < sum(in_use) <= value(found, "bitnet_pool_reserved_bytes", model=name)
            assert value(found, "bitnet_pool_reserved_bytes", model=name) <= limit
        assert "another" not in {
            s.labels.get("model") for family in found.values() for s in family.samples
        }


def test_what_runs_is_told(server):
    found = families(server)
    assert value(found, "bitnet_build_info", version=VERSION, isa=bitnet.info()["isa"]) == 1
    assert value(found, "process_resident_memory_bytes") > 1 << 20


def test_two_servers_in_one_process_count_for_themselves(model):
    def requests_of(application):
        text, _ = application.service.metrics.text("")
        return re.findall(r"bitnet_requests_total{.*} (.*)", text.decode())

    async def ask(application):
        scope = {"type": "http", "method": "GET", "path": "/health", "query_string": b"",
                 "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)}  # fmt: skip
        await application(scope, None, ignore)

    async def ignore(message):
        pass

    first, second = (Application([model], Options()) for _ in range(2))
    asyncio.run(ask(first))
    assert (requests_of(first), requests_of(second)) == (["1.0"], [])
