"""Adapters in the engine: their answers, their comings and goings, and what is given back."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import AdapterDamaged, AdapterTooLarge, InvalidAdapter
from peftserve.adapters.files import WEIGHTS, content_digest
from peftserve.kernels.bypass.cpp.loading import load_loop
from peftserve.kernels.bypass.torch import calibration
from peftserve.server.engine.adapters import service
from peftserve.server.engine.adapters.copies import Copy, Event, HostCopies, Pieces, copy_pieces
from peftserve.server.wire.messages import Pooling

MakeBench = Callable[..., Any]
PROMPT = [7, 250, 31, 90, 44, 44, 120, 9, 10, 200, 201]
PATIENCE = 30.0


def mixture_of(adapters: dict[str, Path], *parts: tuple[str, float]) -> tuple[tuple[Path, float], ...]:
    return tuple((adapters[digest], weight) for digest, weight in parts)


def poll_until(bench: Any, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        bench.engine.poll()


def test_each_request_gets_its_own_adapters(make_bench: MakeBench, adapters: dict[str, Path], peft: Any) -> None:
    bench = make_bench(adapters.items())
    mixtures: list[list[tuple[str, float]]] = [
        [],
        [("a", 1.0)],
        [("b", 1.0)],
        [("c", 1.0)],
        [("c", 0.5)],
        [("a", 0.7), ("b", -0.3)],
        [("b", 0.2), ("c", 0.3), ("a", 0.5)],
    ]
    for i, parts in enumerate(mixtures):
        bench.add(str(i), PROMPT, parts, max_tokens=8)
    answers = bench.run()
    for i, parts in enumerate(mixtures):
        assert answers[str(i)].token_ids == peft.greedy(PROMPT, 8, mixture_of(adapters, *parts)).token_ids
    bench.assert_idle()


@pytest.mark.parametrize("overlapped", [False, True])
def test_an_adapter_that_gives_no_numbers_fails_its_own_requests_alone(
    make_bench: MakeBench,
    adapters: dict[str, Path],
    peft: Any,
    tmp_path: Path,
    overlapped: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Beside it and behind it, on the pages and the arena that it has left, others get their own answers."""
    shutil.copytree(adapters["a"], tmp_path / "wild")
    tensors = load_file(tmp_path / "wild" / WEIGHTS)
    save_file({key: tensor.sign() * 1e30 for key, tensor in tensors.items()}, tmp_path / "wild" / WEIGHTS)
    known = [*adapters.items(), ("wild", tmp_path / "wild")]
    bench = make_bench(known, kv_cache_tokens=160, max_loras=2, async_scheduling=overlapped)
    for turn in range(3):
        for name, parts in (("wild", ["wild"]), ("base", []), ("mixed", [("a", 0.5), ("wild", 0.5)]), ("b", ["b"])):
            sampling = {"temperature": 1.0, "seed": 1} if name == "mixed" else {}
            bench.add(name, PROMPT, parts, max_tokens=8, **sampling)
        pooled = Pooling("last") if turn else Pooling("mean")
        bench.add("vector", PROMPT, ["wild"], max_tokens=0, pooling=pooled)
        bench.add("scored", PROMPT, ["wild"], max_tokens=0, prompt_logprobs=1)
        bench.add("sound", PROMPT, [], max_tokens=0, prompt_logprobs=1)
        answers = bench.run()
        assert answers["base"].token_ids == peft.greedy(PROMPT, 8).token_ids
        assert answers["b"].token_ids == peft.greedy(PROMPT, 8, mixture_of(adapters, ("b", 1.0))).token_ids
        assert answers["sound"].outputs[-1].prompt_logprobs
        for name in ("wild", "mixed", "vector", "scored"):
            assert [output.error_kind for output in answers[name].outputs] == ["InvalidLogits"], name
            assert not answers[name].token_ids
    assert bench.engine.stats().invalid_logits == 12
    bench.assert_idle()


def test_without_a_compiler_the_answers_are_the_same(
    make_bench: MakeBench,
    adapters: dict[str, Path],
    peft: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    remembered = (load_loop, calibration._measure)
    for each in remembered:
        each.cache_clear()
    try:
        bench = make_bench(adapters.items())
    finally:
        for each in remembered:
            each.cache_clear()
    assert "there is no C++ compiler" in caplog.text
    for name in ("a", "b"):
        answer = bench.ask(PROMPT, [(name, 1.0)], max_tokens=8)
        assert answer.token_ids == peft.greedy(PROMPT, 8, mixture_of(adapters, (name, 1.0))).token_ids


def test_an_inspection_says_what_the_adapter_is(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    bench = make_bench()
    card = bench.engine.inspect_adapter("a", adapters["a"])
    assert (card.method, card.rank, card.sites, card.consumed) == ("LORA", 4, 4, 8)
    assert card.primitives == {"low_rank": 4}
    poll_until(bench, lambda: bool(bench.engine.stats().host_adapters))
    stats = bench.engine.stats()
    assert (stats.host_adapters, stats.host_adapter_bytes) == (["a"], card.num_bytes)
    assert (stats.device_adapters, stats.device_adapter_bytes) == ([], 0)


def test_a_checkpoint_that_is_wrong_is_refused_and_nothing_kept(
    make_bench: MakeBench, adapters: dict[str, Path], tmp_path: Path
) -> None:
    bench = make_bench()
    for file in adapters["a"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InvalidAdapter):
        bench.engine.inspect_adapter("a", tmp_path)
    bench.engine.poll()
    assert bench.engine.stats().host_adapters == []
    assert len(bench.ask(PROMPT, max_tokens=2).token_ids) == 2


def test_an_adapter_larger_than_the_arena_is_refused(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    with pytest.raises(AdapterTooLarge, match="--adapter-memory allows 4096"):
        make_bench(adapter_memory=4096).engine.inspect_adapter("a", adapters["a"])


def test_a_mixture_larger_than_the_arena_ends_in_an_error(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    """Rather than in waiting, for itself and for those behind it."""
    sizes = {d: make_bench().engine.inspect_adapter(d, f).num_bytes for d, f in adapters.items()}
    bench = make_bench(adapters.items(), adapter_memory=sizes["b"] + sizes["c"])
    bench.add("all", PROMPT, "abc")
    bench.add("two", PROMPT, "bc", max_tokens=3)
    bench.add("base", PROMPT, max_tokens=3)
    answers = bench.run()
    assert [output.error is None for output in answers["all"].outputs] == [False]
    assert "need more memory on the device than --adapter-memory allows" in answers["all"].last.error
    assert len(answers["two"].token_ids) == len(answers["base"].token_ids) == 3
    bench.assert_idle()


def test_the_same_adapter_twice_is_one_with_the_sum_of_weights(
    make_bench: MakeBench, adapters: dict[str, Path], peft: Any
) -> None:
    bench = make_bench(adapters.items(), max_loras=1)
    answer = bench.ask(PROMPT, [("a", 0.25), ("a", 0.75)], max_tokens=8)
    assert answer.token_ids == peft.greedy(PROMPT, 8, mixture_of(adapters, ("a", 1.0))).token_ids


def test_adapters_take_turns_in_few_slots_and_come_back_from_disk(
    make_bench: MakeBench, adapters: dict[str, Path], peft: Any
) -> None:
    bench = make_bench(adapters.items(), max_loras=1, host_adapter_memory=0)
    for i in range(9):
        bench.add(str(i), PROMPT, "abc"[i % 3], max_tokens=4)
    answers = bench.run()
    for i in range(9):
        assert answers[str(i)].token_ids == peft.greedy(PROMPT, 4, mixture_of(adapters, ("abc"[i % 3], 1.0))).token_ids
    stats = bench.engine.stats()
    assert stats.adapter_loads >= 3
    assert stats.adapter_evictions >= 2
    assert len(stats.device_adapters) == 1
    assert len(stats.adapter_load_seconds) == stats.adapter_loads
    assert bench.engine.stats().adapter_load_seconds == []


class HeldCopies(HostCopies):
    """As a GPU's: the loader's thread hands them over at once, and they end when the test says so."""

    has_ended = False

    def behind_steps(self) -> Copy:
        def enqueue(pieces: Pieces) -> Event:
            copy_pieces(pieces, self._arena)
            return self

        return enqueue

    def query(self) -> bool:
        return self.has_ended


def test_nobody_waits_for_a_copy_to_the_device(
    make_bench: MakeBench, adapters: dict[str, Path], peft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[HeldCopies] = []
    monkeypatch.setattr(service, "make_copies", lambda arena: made.append(HeldCopies(arena)) or made[-1])
    bench = make_bench(adapters.items(), max_loras=2)
    (copies,) = made
    bench.add("late", PROMPT, "a", max_tokens=3)
    bench.add("base", PROMPT, max_tokens=20)
    outputs = [output for _ in range(20) for output in bench.step()]
    assert [output.request_id for output in outputs] == ["base"] * 20, "a token in every step"
    assert outputs[-1].finish_reason is not None
    assert bench.engine.adapters.residency.is_loading()
    copies.has_ended = True
    answers = bench.run()
    assert answers["late"].token_ids == peft.greedy(PROMPT, 3, mixture_of(adapters, ("a", 1.0))).token_ids
    assert [token for output in outputs for token in output.token_ids] == peft.greedy(PROMPT, 20).token_ids
    bench.assert_idle()


@pytest.fixture
def stored(adapters: dict[str, Path], tmp_path: Path) -> dict[str, str]:
    """Name to digest of the adapters as they lie in the store at `tmp_path`."""
    digests = {name: content_digest(folder) or "" for name, folder in adapters.items()}
    for name, folder in adapters.items():
        shutil.copytree(folder, tmp_path / digests[name])
    return digests


def test_adapters_of_the_store_need_no_inspection(
    make_bench: MakeBench, adapters: dict[str, Path], stored: dict[str, str], tmp_path: Path, peft: Any
) -> None:
    bench = make_bench(store=tmp_path)
    answer = bench.ask(PROMPT, [stored["b"]], max_tokens=4)
    assert answer.token_ids == peft.greedy(PROMPT, 4, mixture_of(adapters, ("b", 1.0))).token_ids


@pytest.mark.parametrize("damage", ["a flipped bit", "a missing file", "another file", "no folder"])
def test_damaged_files_of_the_store_are_never_computed_with(
    make_bench: MakeBench, adapters: dict[str, Path], stored: dict[str, str], tmp_path: Path, peft: Any, damage: str
) -> None:
    weights = tmp_path / stored["a"] / WEIGHTS
    match damage:
        case "a flipped bit":
            content = bytearray(weights.read_bytes())
            content[-5] ^= 1
            weights.write_bytes(content)
        case "a missing file":
            weights.unlink()
        case "another file":
            weights.with_name("more").touch()
        case "no folder":
            shutil.rmtree(weights.parent)
    bench = make_bench(store=tmp_path)
    bench.add("bad", PROMPT, [stored["a"]], max_tokens=4)
    bench.add("good", PROMPT, [stored["b"]], max_tokens=4)
    answers = bench.run()
    assert answers["bad"].last.error_kind == "AdapterDamaged"
    assert answers["bad"].token_ids == []
    assert answers["good"].token_ids == peft.greedy(PROMPT, 4, mixture_of(adapters, ("b", 1.0))).token_ids
    stats = bench.engine.stats()
    assert (stats.adapter_integrity_failures, stats.damaged_adapters) == (1, [stored["a"]])
    assert bench.engine.stats().damaged_adapters == []


def test_a_cold_adapter_comes_while_all_inspections_are_held(
    make_bench: MakeBench,
    adapters: dict[str, Path],
    stored: dict[str, str],
    tmp_path: Path,
    peft: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many uploads of however many tenants take however long."""
    bench = make_bench(store=tmp_path)
    service, go = bench.engine.adapters, threading.Event()
    compile_one = service._compile

    def held(folder: Path, task: int = 0) -> Any:
        if folder.name == "hostile":
            assert go.wait(PATIENCE)
        return compile_one(folder, task)

    monkeypatch.setattr(service, "_compile", held)
    hostile = [bench.engine.start_inspection("h", tmp_path / "hostile", f"tenant {i % 3}") for i in range(8)]
    answer = bench.ask(PROMPT, [stored["b"]], max_tokens=4)
    assert answer.token_ids == peft.greedy(PROMPT, 4, mixture_of(adapters, ("b", 1.0))).token_ids
    assert not any(inspection.done() for inspection in hostile)
    go.set()
    assert all(isinstance(inspection.exception(PATIENCE), AdapterDamaged) for inspection in hostile)


def test_what_changes_before_it_is_inspected_is_no_mistake_of_who_sent_it(
    make_bench: MakeBench, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(store=tmp_path / "store")
    upload = shutil.copytree(adapters["a"], tmp_path / "upload")
    tensors = load_file(upload / WEIGHTS)
    save_file({key: tensor.T.contiguous() for key, tensor in tensors.items()}, upload / WEIGHTS)
    digest = content_digest(upload) or ""
    with pytest.raises(InvalidAdapter, match="has the shape"):
        bench.engine.inspect_adapter(digest, upload)
    content = bytearray((upload / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (upload / WEIGHTS).write_bytes(content)
    with pytest.raises(AdapterDamaged):
        bench.engine.inspect_adapter(digest, upload)
    shutil.rmtree(upload)
    with pytest.raises(AdapterDamaged):
        bench.engine.inspect_adapter(digest, upload)
    for error in (MemoryError(), OSError(5, "Input/output error")):
        monkeypatch.setattr("peftserve.adapters.peft.compile._compile", Mock(side_effect=error))
        with pytest.raises(type(error)):
            bench.engine.inspect_adapter(content_digest(adapters["b"]) or "", adapters["b"])


@pytest.mark.parametrize("from_store", [True, False])
def test_an_adapter_that_is_missing_fails_its_requests_alone(
    make_bench: MakeBench,
    adapters: dict[str, Path],
    stored: dict[str, str],
    tmp_path: Path,
    peft: Any,
    from_store: bool,
) -> None:
    bench = make_bench(store=tmp_path) if from_store else make_bench(adapters.items())
    digest = stored["a"] if from_store else "a"
    bench.add("lost", PROMPT, ["gone"])
    bench.add("mixed", PROMPT, [digest, "gone", "gone too"])
    bench.add("a", PROMPT, [digest], max_tokens=4)
    bench.add("base", PROMPT, max_tokens=4)
    answers = bench.run()
    for name in ("lost", "mixed"):
        assert [output.error is None for output in answers[name].outputs] == [False]
        assert "the adapter could not be loaded" in answers[name].last.error
        assert str(adapters["a"].parent) not in answers[name].last.error
    assert answers["a"].token_ids == peft.greedy(PROMPT, 4, mixture_of(adapters, ("a", 1.0))).token_ids
    assert answers["base"].token_ids == peft.greedy(PROMPT, 4).token_ids
    bench.assert_idle()


def test_releasing_an_adapter_gives_all_of_it_back(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    bench = make_bench(adapters.items())
    for digest in adapters:
        bench.ask(PROMPT, digest, max_tokens=2)
    stats = bench.engine.stats()
    assert (stats.device_adapters, stats.host_adapters) == (["a", "b", "c"], ["a", "b", "c"])
    before = (stats.device_adapter_bytes, stats.host_adapter_bytes)
    assert before[0] == before[1] > 0
    bench.engine.release_adapter("b")
    assert bench.engine.stats().device_adapters == ["a", "c"]
    for digest in "abc":
        bench.engine.release_adapter(digest)
    stats = bench.engine.stats()
    assert (stats.device_adapter_bytes, stats.host_adapter_bytes) == (0, 0)
    assert (stats.device_adapters, stats.host_adapters) == ([], [])
    bench.assert_idle()


@pytest.mark.parametrize("steps", [0, 3])
def test_an_adapter_is_released_when_its_last_request_ends(
    make_bench: MakeBench, adapters: dict[str, Path], peft: Any, steps: int
) -> None:
    """One that runs, and one that has not begun."""
    bench = make_bench(adapters.items())
    bench.add("one", PROMPT, "a", max_tokens=8)
    outputs = [output for _ in range(steps) for output in bench.step()]
    with pytest.raises(ValueError, match="a request uses this adapter"):
        bench.engine.release_adapter("a")
    release = bench.engine.start_release("a")
    for answer in bench.run().values():
        outputs += answer.outputs
    assert [t for o in outputs for t in o.token_ids] == peft.greedy(
        PROMPT, 8, mixture_of(adapters, ("a", 1.0))
    ).token_ids
    bench.engine.poll()
    assert release.done()
    assert bench.engine.stats().device_adapter_bytes == 0


def test_a_released_adapter_may_come_back(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    bench = make_bench(adapters.items())
    first = bench.ask(PROMPT, "a", max_tokens=6).token_ids
    bench.engine.release_adapter("a")
    failed = bench.ask(PROMPT, "a", max_tokens=6)
    assert failed.last.error is not None
    bench.engine.inspect_adapter("a", adapters["a"])
    assert bench.ask(PROMPT, "a", max_tokens=6).token_ids == first


def test_stats_count_sequences_by_adapter(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    bench = make_bench(adapters.items(), max_running=2)
    bench.ask(PROMPT, "ab", max_tokens=1)
    for i, digests in enumerate(["", "ab", "b", "b"]):
        bench.add(str(i), PROMPT, digests, max_tokens=4)
    bench.step()
    stats = bench.engine.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 2)
    totals = {d: stats.running_adapters.get(d, 0) + stats.waiting_adapters.get(d, 0) for d in "ab"}
    assert totals == {"a": 1, "b": 3}


def test_an_adapter_that_overflows_spoils_nobody_elses_text(
    make_bench: MakeBench, adapters: dict[str, Path], peft: Any, tmp_path: Path
) -> None:
    """Its keys and values are NaN, on pages that others use next."""
    for file in adapters["a"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor * 1e20 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    bench = make_bench([*adapters.items(), ("huge", tmp_path)], kv_cache_tokens=64)
    expected = peft.greedy(PROMPT, 12).token_ids
    for _ in range(3):
        assert bench.ask([*PROMPT, *PROMPT], ["huge"], max_tokens=20).last.error_kind == "InvalidLogits"
        bench.add("huge", PROMPT[:5], ["huge"], max_tokens=12)
        bench.add("base", PROMPT, max_tokens=12)
        bench.add("short", PROMPT[:1], max_tokens=12)
        answers = bench.run()
        assert answers["base"].token_ids == expected
        assert answers["short"].token_ids == peft.greedy(PROMPT[:1], 12).token_ids
