"""The engine's loop with a socket of lists, and the real process behind the API's own client."""

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from peftserve.adapters.errors import InvalidAdapter
from peftserve.server.api.engine.client import EngineClient
from peftserve.server.api.engine.interface import EngineDead
from peftserve.server.api.engine.launched import LaunchedEngine
from peftserve.server.api.engine.process import EngineProcess
from peftserve.server.config import EngineConfig
from peftserve.server.engine import process as engine_process
from peftserve.server.engine.process import EngineLoop
from peftserve.server.wire.messages import (
    AbortRequest,
    AddRequest,
    Command,
    EngineStats,
    Event,
    InspectAdapter,
    LoadAdapter,
    ModelInfo,
    Outputs,
    PinAdapters,
    Pooling,
    ReleaseAdapter,
    Reply,
    SamplingParams,
    SequenceOutput,
    Shutdown,
    WeightedAdapter,
)

MakeBench = Callable[..., Any]
PROMPT = [7, 250, 31, 90, 44]
PATIENCE = 180.0  # seconds; a busy machine takes 30 for a start
MOST_POLLS = 20_000


def request(request_id: str = "one", adapters: str = "", max_tokens: int = 6, prompt: Any = PROMPT) -> AddRequest:
    return AddRequest(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
        adapters=[WeightedAdapter(digest) for digest in adapters],
    )


# The loop


class ScriptedSocket:
    """Hands out commands when what they wait for has come, then `Shutdown`. Keeps every event."""

    def __init__(self, script: list[tuple[Callable[["ScriptedSocket"], bool], list[Command]]]) -> None:
        self.script = script
        self.events: list[Event] = []
        self.polls = 0

    def poll(self, timeout: float | None) -> list[Command]:
        self.polls += 1
        assert self.polls < MOST_POLLS, "the loop waits for what never comes"
        if not self.script:
            return [Shutdown()]
        condition, commands = self.script[0]
        if not condition(self):
            # A loop that would wait, or has gone round for long, lets the loader's thread work.
            time.sleep(0.0 if timeout == 0 and self.polls < 1000 else 0.001)
            return []
        del self.script[0]
        return commands

    def send(self, event: Event) -> None:
        self.events.append(event)

    def replies(self) -> dict[int, Reply]:
        return {event.call_id: event for event in self.events if isinstance(event, Reply)}

    def outputs(self, request_id: str) -> list[Any]:
        batches = [event.outputs for event in self.events if isinstance(event, Outputs)]
        return [output for batch in batches for output in batch if output.request_id == request_id]

    def tokens(self, request_id: str) -> list[int]:
        return [token for output in self.outputs(request_id) for token in output.token_ids]

    def is_done(self, request_id: str) -> bool:
        return any(output.finish_reason or output.error for output in self.outputs(request_id))

    def stats(self) -> list[EngineStats]:
        return [event for event in self.events if isinstance(event, EngineStats)]


def at_once(socket: ScriptedSocket) -> bool:
    return True


def run_loop(bench: Any, *script: tuple[Callable[[ScriptedSocket], bool], list[Command]]) -> ScriptedSocket:
    socket = ScriptedSocket(list(script))
    EngineLoop(bench.engine, socket).run()  # type: ignore[arg-type]
    return socket


def test_requests_are_answered_while_adapters_come_and_go(
    make_bench: MakeBench, adapters: dict[str, Path], peft: Any
) -> None:
    socket = run_loop(
        make_bench(),
        (at_once, [request("base", max_tokens=30), InspectAdapter(1, "a", str(adapters["a"]))]),
        (lambda s: 1 in s.replies(), [request("adapted", "a"), ReleaseAdapter(2, "a")]),
        (lambda s: s.is_done("base") and s.is_done("adapted") and 2 in s.replies(), []),
    )
    facts = socket.replies()[1].facts
    assert facts is not None
    assert facts.rank == 4
    assert socket.replies()[2] == Reply(2)
    assert socket.tokens("base") == peft.greedy(PROMPT, 30).token_ids
    assert socket.tokens("adapted") == peft.greedy(PROMPT, 6, ((adapters["a"], 1.0),)).token_ids
    released = [i for i, event in enumerate(socket.events) if event == Reply(2)]
    ended = [i for i, e in enumerate(socket.events) if isinstance(e, Outputs) and e.outputs[-1].request_id == "adapted"]
    assert ended[-1] < released[0], "released while a request used it"
    before = next(e for e in reversed(socket.events[: released[0]]) if isinstance(e, EngineStats))
    assert (before.device_adapter_bytes, before.host_adapter_bytes) == (0, 0)


def test_adapters_are_pinned_and_loaded_ahead_of_use(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    inspections: list[Command] = [InspectAdapter(i, digest, str(adapters[digest])) for i, digest in enumerate("abc")]
    socket = run_loop(
        make_bench(max_loras=2),
        (at_once, inspections),
        (lambda s: len(s.replies()) == 3, [PinAdapters(3, ["a"]), LoadAdapter(4, "b"), LoadAdapter(5, "missing")]),
        (lambda s: len(s.replies()) == 6, [PinAdapters(6, ["c", "a"]), LoadAdapter(7, "a")]),
        (lambda s: len(s.replies()) == 8, []),
    )
    replies = socket.replies()
    assert (replies[3], replies[4], replies[7]) == (Reply(3), Reply(4, level="device"), Reply(7, level="device"))
    assert replies[5].error_kind == "InvalidAdapter"
    assert (replies[6].error_kind, replies[6].error) == (
        "AdapterConflict",
        "1 adapters can be pinned with --max-loras 2, so that others have a slot",
    )
    assert socket.stats()[-1].pinned_adapters == ["a"]
    assert {*socket.stats()[-1].device_adapters} == {"a", "b"}


def test_what_is_wrong_with_an_adapter_is_replied(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench()
    socket = run_loop(bench, (at_once, [InspectAdapter(1, "x", str(tmp_path))]), (lambda s: 1 in s.replies(), []))
    reply = socket.replies()[1]
    assert reply.facts is None
    assert reply.error_kind == "InvalidAdapter"
    assert reply.error is not None
    assert str(tmp_path) not in reply.error

    def fail(folder: Path) -> None:
        raise RuntimeError(f"a mistake of ours in {folder}")

    monkeypatch.setattr(bench.engine.adapters, "_compile", fail)
    socket = run_loop(bench, (at_once, [InspectAdapter(2, "x", str(tmp_path))]), (lambda s: 2 in s.replies(), []))
    assert socket.replies()[2].error_kind == "AdapterFailed"
    assert str(tmp_path) not in (socket.replies()[2].error or "")
    assert "an adapter could not be read or loaded" in caplog.text


def test_a_request_that_can_never_run_gets_its_error_and_others_run(make_bench: MakeBench) -> None:
    commands: list[Command] = [request("empty", prompt=[]), request("good"), request("good")]
    socket = run_loop(make_bench(), (at_once, commands), (lambda s: len(s.tokens("good")) == 6, []))
    assert [output.error for output in socket.outputs("empty")] == [
        "the prompt is empty; it must have at least one token"
    ]
    assert [output.error for output in socket.outputs("good") if output.error] == ["request id 'good' is in use"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_without_memory_outside_of_a_step_what_runs_ends_and_the_engine_goes_on(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    bench = make_bench(max_running=2)
    schedule, add = bench.engine._scheduler.schedule, bench.engine._scheduler.add
    raised = [error]

    def failing_once(call: Callable[..., Any], when: Callable[[], bool]) -> Callable[..., Any]:
        def failing(*arguments: Any) -> Any:
            if raised and when():
                raise raised.pop()
            return call(*arguments)

        return failing

    running = bench.engine._scheduler.running
    monkeypatch.setattr(bench.engine._scheduler, "schedule", failing_once(schedule, lambda: len(running) == 2))
    names = ["one", "two", "waits"]
    again = [request("again"), request("unlucky"), request("lucky")]

    def prepare(socket: ScriptedSocket) -> bool:
        if not all(map(socket.is_done, names)):
            return False
        if isinstance(error, MemoryError):
            raised.append(MemoryError())
        unlucky = failing_once(add, lambda: True)
        monkeypatch.setattr(
            bench.engine._scheduler, "add", lambda s: unlucky(s) if s.request_id == "unlucky" else add(s)
        )
        return True

    socket = run_loop(
        bench,
        (at_once, [request(name, max_tokens=50) for name in names]),
        (prepare, again),  # type: ignore[list-item]
        (lambda s: all(map(s.is_done, ("again", "unlucky", "lucky"))), []),
    )
    assert {socket.outputs(name)[-1].error_kind for name in names} == {"OutOfMemory"}
    assert len(socket.tokens("again")) == len(socket.tokens("lucky")) == 6
    expected = "OutOfMemory" if isinstance(error, MemoryError) else None
    assert socket.outputs("unlucky")[-1].error_kind == expected
    bench.assert_idle()


def test_what_is_no_want_of_memory_ends_the_engine(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench()
    monkeypatch.setattr(bench.engine._scheduler, "schedule", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run_loop(bench, (at_once, [request()]), (lambda s: s.is_done("one"), []))


def test_an_aborted_request_says_nothing_more(make_bench: MakeBench) -> None:
    bench = make_bench()
    said: list[int] = []

    def abort_after_two(socket: ScriptedSocket) -> bool:
        said[:] = socket.tokens("one")
        return len(said) == 2

    run_loop_socket = run_loop(
        bench,
        (at_once, [request("one", max_tokens=100), request("other", max_tokens=10)]),
        (abort_after_two, [AbortRequest("one"), AbortRequest("unknown")]),
        (lambda s: s.is_done("other"), []),
    )
    assert run_loop_socket.tokens("one") == said
    bench.assert_idle()


def test_the_last_accounts_of_an_idle_engine_are_sent_once(make_bench: MakeBench) -> None:
    idle = iter(range(50))
    socket = run_loop(
        make_bench(),
        (at_once, [request()]),
        (lambda s: s.is_done("one") and next(idle) == 40, []),
    )
    last = socket.stats()[-1]
    assert (last.num_running, last.num_waiting, last.kv_pages_used) == (0, 0, 0)
    end = max(i for i, event in enumerate(socket.events) if isinstance(event, Outputs))
    assert len([event for event in socket.events[end:] if isinstance(event, EngineStats)]) == 1


def test_the_hosts_adapters_are_listed_when_they_change(
    make_bench: MakeBench, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "LIST_SECONDS", math.inf)  # or a slow run has them listed once more
    socket = run_loop(
        make_bench(),
        (at_once, [request("one")]),
        (lambda s: s.is_done("one"), [InspectAdapter(1, "a", str(next(iter(adapters.values()))))]),
        (lambda s: any(event.host_adapters == ["a"] for event in s.stats()), [request("two")]),
        (lambda s: s.is_done("two"), []),
    )
    listed = [event for event in socket.stats() if not event.host_unchanged]
    assert [event.host_adapters for event in listed[:1]] == [[]]
    assert ["a"] in [event.host_adapters for event in listed]
    assert socket.stats()[-1].host_unchanged
    assert socket.stats()[-1].host_adapters == []


def test_books_that_disagree_are_logged_and_the_loop_goes_on(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench()

    def disagree() -> None:
        raise AssertionError("page 3 is lost")

    monkeypatch.setattr(bench.engine, "check_integrity", disagree)
    run_loop(bench, (lambda s: bool(s.stats()), [request()]), (lambda s: s.is_done("one"), []))
    assert "the engine's books do not agree" in caplog.text


# The process


@contextlib.asynccontextmanager
async def client_of(model: Path, **options: Any) -> AsyncIterator[LaunchedEngine]:
    config = EngineConfig(model=str(model), device="cpu", num_threads=1, kv_cache_tokens=1024, **options)
    client = LaunchedEngine(config)
    try:
        yield client
    finally:
        await client.shutdown()


class Reader:
    """The tokens of a sequence; `begun` and `ended` are futures."""

    def __init__(self, client: EngineClient, message: AddRequest) -> None:
        self.tokens: list[int] = []
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        client.submit(message, self)

    def push(self, output: SequenceOutput) -> None:
        self.tokens += output.token_ids
        if not self.begun.done():
            self.begun.set_result(None)
        if output.finish_reason is not None:
            self.ended.set_result(self.tokens)

    def fail(self, death: EngineDead) -> None:
        self.ended.set_exception(death)


async def collect(client: EngineClient, message: AddRequest) -> list[int]:
    return await Reader(client, message).ended


@pytest.mark.slow
async def test_a_whole_life_of_the_process(
    tiny_llama: Path, adapters: dict[str, Path], peft: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async with asyncio.timeout(PATIENCE), client_of(tiny_llama, adapter_memory=1 << 21) as client:
        info = await client.start()
        assert isinstance(info, ModelInfo)
        assert info.model_name == tiny_llama.name
        assert info.pid != os.getpid()
        assert "INFO peftserve.server.engine.engine: Memory on cpu\n" in capfd.readouterr().err
        card = await client.inspect_adapter("a", adapters["a"])
        assert card.method == "LORA"
        with pytest.raises(InvalidAdapter):
            await client.inspect_adapter("nothing", tiny_llama)
        plain, adapted = await asyncio.gather(
            collect(client, request("plain")), collect(client, request("adapted", "a"))
        )
        assert plain == peft.greedy(PROMPT, 6).token_ids
        assert adapted == peft.greedy(PROMPT, 6, ((adapters["a"], 1.0),)).token_ids
        os.kill(info.pid, signal.SIGINT)  # ^C in the terminal is for the API process
        await Reader(client, request("left", max_tokens=200)).begun
        client.abort("left")
        await client.pin_adapters(["a"])
        assert await client.load_adapter("a") == "device"
        pooled = await client.embed(PROMPT, Pooling("mean", 0), [WeightedAdapter("a")])
        expected = peft.hidden_states(PROMPT, ((adapters["a"], 1.0),))[0].mean(0)
        assert pooled == pytest.approx(expected.tolist(), abs=1e-5)
        await client.release_adapter("a")
        assert (client.stats.device_adapter_bytes, client.stats.pinned_adapters) == (0, [])
        process = client._process
        assert process is not None
        await client.shutdown()
        assert await process.wait() == 0


@pytest.mark.slow
async def test_it_logs_what_it_is_told_to_and_ends_with_its_parent(
    tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = EngineConfig(model=str(tiny_llama), device="cpu", num_threads=1, log_level="warning")
    async with asyncio.timeout(PATIENCE):
        process = await EngineProcess.start(config)
        client = EngineClient()
        try:
            await client.attach(process.connect())
            await client.loaded()
            assert "INFO" not in capfd.readouterr().err
            life_line = process._process.stdin
            assert life_line is not None
            life_line.close()
            assert await process.wait() == 1
        finally:
            await process.stop(0)
            client.leave()
            process.close()


@pytest.mark.slow
async def test_a_folder_that_is_no_model_is_told_to_the_operator(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE), client_of(tmp_path) as client:
        with pytest.raises(EngineDead, match=str(tmp_path)):
            await client.start()
        assert not client.alive
