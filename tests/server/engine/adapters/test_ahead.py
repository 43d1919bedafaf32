"""Adapters that are pinned or loaded ahead of use, in engines over a tiny Llama."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.adapters.errors import AdapterConflict, AdapterError, AdapterNotFound, AdapterTooLarge, InvalidAdapter
from peftserve.server.engine.adapters import ahead

MakeBench = Callable[..., Any]
PROMPT = [7, 250, 31, 90, 44]


def on_device(bench: Any) -> set[str]:
    return {*bench.engine.stats().device_adapters}


def settle(bench: Any) -> None:
    """Let all loads end."""
    while bench.engine.adapters.is_busy():
        bench.engine.poll()
    bench.engine.check_integrity()


def test_an_adapter_is_there_before_its_first_request(
    make_bench: MakeBench, adapters: dict[str, Path], peft: Any
) -> None:
    bench = make_bench(adapters.items())
    assert bench.engine.load_adapter("a") == "device"
    assert bench.engine.load_adapter("a") == "device"
    assert on_device(bench) == {"a"}
    bench.add("one", PROMPT, ["a"], max_tokens=3)
    first = bench.step()
    assert [output.request_id for output in first] == ["one"], "it waits for nothing"
    tokens = [*first[0].token_ids, *bench.run()["one"].token_ids]
    assert tokens == peft.greedy(PROMPT, 3, ((adapters["a"], 1.0),)).token_ids
    assert bench.engine.stats().adapter_loads == 1


def test_a_load_that_fails_is_told_to_who_asked_and_harms_nobody_later(
    make_bench: MakeBench, adapters: dict[str, Path]
) -> None:
    bench = make_bench()
    with pytest.raises(InvalidAdapter, match="no adapter with digest a was inspected"):
        bench.engine.load_adapter("a")
    bench.engine.poll()
    bench.engine.inspect_adapter("a", adapters["a"])
    assert bench.ask(PROMPT, ["a"], max_tokens=2).last.finish_reason == "length"


@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_a_load_waits_for_a_slot_as_long_as_it_may(
    make_bench: MakeBench, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(ahead, "PATIENCE", patience)
    bench = make_bench(adapters.items(), max_loras=1)
    bench.add("busy", PROMPT, ["b"], max_tokens=30)
    for _ in range(5):
        bench.step()
    load = bench.engine.start_load("a")
    for _ in range(5):
        bench.step()
    assert load.done() == (patience == 0.0)
    bench.run()
    settle(bench)
    assert load.result() == ("device" if patience else "host")
    assert on_device(bench) == ({"a"} if patience else {"b"})


def test_pinned_adapters_stay_whatever_comes(
    make_bench: MakeBench, oracle: ModuleType, tiny_llama: Path, adapters: dict[str, Path], tmp_path: Path, peft: Any
) -> None:
    more = {
        f"more{seed}": oracle.random_adapter(tiny_llama, tmp_path / str(seed), seed, r=2, target_modules=["q_proj"])
        for seed in range(4)
    }
    bench = make_bench([*adapters.items(), *more.items()], max_loras=3, async_scheduling=True)
    bench.engine.pin_adapters(["a", "b"])
    settle(bench)
    assert on_device(bench) == {"a", "b"}
    for round_ in range(3):
        for digest in [*more, "c"]:
            bench.add(f"{digest} {round_}", PROMPT, [digest], max_tokens=2)
    seen = []
    while bench.engine.has_work():
        bench.step()
        seen.append(on_device(bench))
    assert all({"a", "b"} <= there for there in seen)
    assert set().union(*seen) == {*adapters, *more}
    loads = bench.engine.stats().adapter_loads
    assert bench.ask(PROMPT, ["a"], max_tokens=4).token_ids == peft.greedy(PROMPT, 4, ((adapters["a"], 1.0),)).token_ids
    assert bench.engine.stats().adapter_loads == loads
    bench.engine.pin_adapters([])
    for digest in more:
        bench.ask(PROMPT, [digest], max_tokens=1)
    assert on_device(bench) <= {*more}
    bench.assert_idle()


def test_a_pinned_one_whose_load_has_failed_comes_when_it_is_pinned_again(
    make_bench: MakeBench, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        raise torch.OutOfMemoryError

    bench = make_bench(adapters.items())
    with monkeypatch.context() as patch:
        patch.setattr(bench.engine.adapters.attachments, "prepare", prepare)
        bench.engine.pin_adapters(["a"])
        settle(bench)
    assert (bench.engine.stats().pinned_adapters, on_device(bench)) == (["a"], set())
    bench.engine.pin_adapters(["a", "b"])
    settle(bench)
    assert on_device(bench) == {"a", "b"}


def test_no_more_are_pinned_than_leave_others_a_slot(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    bench = make_bench(adapters.items(), max_loras=2)
    bench.engine.pin_adapters(["b"])
    with pytest.raises(AdapterConflict, match="1 adapters can be pinned with --max-loras 2"):
        bench.engine.pin_adapters(["a", "b"])
    assert bench.engine.stats().pinned_adapters == ["b"], "what was pinned and is asked for again stays"
    with pytest.raises(AdapterConflict):
        bench.engine.pin_adapters(["a", "c"])
    assert bench.engine.stats().pinned_adapters == ["a"]
    answer = bench.ask(PROMPT, [("b", 0.5), ("c", 0.5)], max_tokens=2)
    assert "need 2 slots, and the 1 pinned ones leave 1 of --max-loras 2" in answer.last.error


def test_one_slot_is_never_pinned(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    bench = make_bench(adapters.items(), max_loras=1)
    with pytest.raises(AdapterConflict, match="0 adapters can be pinned"):
        bench.engine.pin_adapters(["a"])


def test_pinned_adapters_leave_room_in_the_arena(
    make_bench: MakeBench, adapters: dict[str, Path], tmp_path: Path
) -> None:
    sizes = {digest: facts_of(make_bench(), digest, folder) for digest, folder in adapters.items()}
    large, small = sizes["c"], sizes["a"]
    assert large > 2 * small
    bench = make_bench(adapters.items(), adapter_memory=large + large // 2)
    with pytest.raises(AdapterTooLarge, match=r"pinned adapters may take \d+ bytes of --adapter-memory, so that"):
        bench.engine.pin_adapters(["c"])
    assert bench.engine.stats().pinned_adapters == []
    bench = make_bench([("a", adapters["a"])], adapter_memory=large + small // 2)
    bench.engine.pin_adapters(["a"])
    with pytest.raises(AdapterTooLarge, match="the pinned adapters leave"):
        bench.engine.inspect_adapter("c", adapters["c"])
    bench.engine.pin_adapters([])
    bench.engine.inspect_adapter("c", adapters["c"])
    with pytest.raises(AdapterTooLarge):
        bench.engine.pin_adapters(["a"])
    assert bench.ask(PROMPT, ["c"], max_tokens=1).last.finish_reason == "length"


def facts_of(bench: Any, digest: str, folder: Path) -> int:
    return int(bench.engine.inspect_adapter(digest, folder).num_bytes)


def test_a_released_adapter_is_no_longer_pinned_nor_awaited(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    bench = make_bench(adapters.items(), max_loras=3)
    bench.engine.pin_adapters(["a", "b"])
    settle(bench)
    load, pinning = bench.engine.start_load("c"), bench.engine.start_pinning(["a", "c", "b"])
    for digest in ("a", "c"):
        bench.engine.release_adapter(digest)
    with pytest.raises(AdapterNotFound):
        load.result()
    assert pinning.result() is None
    settle(bench)
    stats = bench.engine.stats()
    assert (stats.pinned_adapters, stats.device_adapters, stats.host_adapters) == (["b"], ["b"], ["b"])
    bench.assert_idle()


def test_one_that_cannot_be_read_does_not_keep_others_from_being_pinned(
    make_bench: MakeBench, adapters: dict[str, Path]
) -> None:
    bench = make_bench(adapters.items())
    with pytest.raises(AdapterError, match="no adapter with digest gone"):
        bench.engine.pin_adapters(["gone", "a"])
    settle(bench)
    assert (bench.engine.stats().pinned_adapters, on_device(bench)) == (["a"], {"a"})
    bench.assert_idle()
