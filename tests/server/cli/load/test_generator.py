import asyncio
import json
import time
from typing import Any

import pytest

from peftserve.server.cli.errors import CommandError
from peftserve.server.cli.load import generator
from peftserve.server.cli.load.generator import DIALECTS, Target, measure
from peftserve.server.cli.load.report import LATE
from peftserve.server.cli.load.stream import Endpoint, Measurement
from peftserve.server.cli.load.trace import Request

SHORT = 2.5 * LATE


def trace(*arrivals: float | None) -> list[Request]:
    return [Request(arrival, f"m{index}", 3, 2, index) for index, arrival in enumerate(arrivals)]


class Fake:
    """Instead of HTTP: remembers what is sent, and how many requests run at once."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.bodies: list[bytes] = []

    async def ask(self, _: Endpoint, body: bytes, measurement: Measurement) -> None:
        self.bodies.append(body)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        measurement.chunks.append(time.perf_counter())
        measurement.end = time.perf_counter()


class Blocking(Fake):
    async def ask(self, endpoint: Endpoint, body: bytes, measurement: Measurement) -> None:
        if not self.bodies:
            time.sleep(SHORT)  # the whole generator stands still, as on a machine that is too slow for it
        await super().ask(endpoint, body, measurement)


@pytest.fixture
def target(stub: Any) -> Target:
    stub.answers["GET", "/v1/models"] = 200, {"data": []}
    return Target(stub.url, names={"m1": "other"})


def test_a_closed_loop_has_so_many_clients(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setattr(generator, "ask", fake.ask)
    measured, seconds = measure(trace(*[None] * 7), target, 3)
    assert fake.most == 3
    assert [m.model for m in measured] == [f"m{i}" for i in range(7)]
    assert all(m.late == 0 and m.end - m.start <= seconds for m in measured)


def test_models_are_asked_by_the_servers_names(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setattr(generator, "ask", fake.ask)
    measured, _ = measure(trace(0.0, 0.001), target, 1)
    assert b'"other"' in fake.bodies[1]
    assert measured[1].model == "m1"


def test_latency_counts_from_the_arrival_and_late_sends_are_measured(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "ask", Blocking().ask)
    measured, seconds = measure(trace(0.0, 0.001, 0.002), target, 1)
    first, *others = measured
    for request, due in zip(others, (0.001, 0.002), strict=True):
        assert request.start - first.start == pytest.approx(due)
        assert request.late > LATE
        assert request.ttft >= request.late
    assert seconds >= SHORT


def test_nothing_is_sent_before_its_arrival(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "ask", Fake().ask)
    measured, seconds = measure(trace(0.0, 0.05), target, 1)
    assert measured[1].chunks[0] >= measured[1].start
    assert seconds >= 0.05


def test_a_server_that_says_no(stub: Any) -> None:
    with pytest.raises(CommandError, match="answered 404"):
        measure(trace(None), Target(stub.url), 1)
    with pytest.raises(CommandError, match="no answer from"):
        measure(trace(None), Target("http://127.0.0.1:9"), 1)


REQUEST = Request(None, "m", 5, 7, 3)


@pytest.mark.parametrize("name", DIALECTS)
def test_all_ask_for_the_same_work(name: str) -> None:
    body = DIALECTS[name](REQUEST)
    assert (body["model"], body["max_tokens"], body["temperature"], body["stream"]) == ("m", 7, 0, True)
    assert len(body["prompt"] if name != "transformers" else body["prompt"].split()) == 5


def test_each_has_its_own_way_not_to_stop() -> None:
    assert DIALECTS["vllm"](REQUEST)["ignore_eos"]
    assert "ignore_eos" not in DIALECTS["openai"](REQUEST)
    assert json.loads(DIALECTS["transformers"](REQUEST)["generation_config"])["eos_token_id"] == -1
