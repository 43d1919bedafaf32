"""Turns: round robin over askers, one task of each at once, each asker's in order, and errors reach who asked."""

import threading
from collections.abc import Callable, Iterator

import pytest

from peftserve.server.engine.adapters.turns import Turns

PATIENCE = 30
MakeTurns = Callable[[int], Turns]


@pytest.fixture
def make_turns() -> Iterator[MakeTurns]:
    made: list[Turns] = []

    def make(num_threads: int) -> Turns:
        made.append(Turns(num_threads, "turns", lambda: None))
        return made[-1]

    yield make
    for turns in made:
        turns.close()


def test_askers_take_turns_however_much_one_has_asked_for(make_turns: MakeTurns) -> None:
    turns, order = make_turns(1), list[str]()
    go, begun = threading.Event(), threading.Event()

    def hold() -> bool:
        begun.set()
        return go.wait(PATIENCE)

    turns.submit("a", hold)
    assert begun.wait(PATIENCE)
    asked = [(asker, i) for asker, count in (("a", 4), ("b", 1), ("c", 2)) for i in range(count)]
    futures = [turns.submit(asker, lambda name=f"{asker}{i}": order.append(name)) for asker, i in asked]  # type: ignore[misc]
    go.set()
    for future in futures:
        future.result(PATIENCE)
    assert order == ["a0", "b0", "c0", "a1", "c1", "a2", "a3"]


def test_one_asker_never_has_all_threads(make_turns: MakeTurns) -> None:
    turns, go = make_turns(2), threading.Event()
    held = [turns.submit("hostile", lambda: go.wait(PATIENCE)) for _ in range(8)]
    for i in range(5):
        assert turns.submit("other", lambda i=i: i).result(PATIENCE) == i  # type: ignore[misc]
    assert not any(future.done() for future in held)
    go.set()
    assert all(future.result(PATIENCE) for future in held)


def test_what_is_raised_reaches_who_asked_and_the_next_task_runs(make_turns: MakeTurns) -> None:
    turns = make_turns(2)
    failed = turns.submit("a", lambda: 1 // 0)
    assert isinstance(failed.exception(PATIENCE), ZeroDivisionError)
    cancelled = turns.submit("a", lambda: 1)
    cancelled.cancel()
    assert turns.submit("a", lambda: 2).result(PATIENCE) == 2


def test_many_tasks_of_many_askers_all_run(make_turns: MakeTurns) -> None:
    turns, running, lock = make_turns(3), set[str](), threading.Lock()

    def alone(asker: str) -> None:
        with lock:
            assert asker not in running, "two tasks of one asker run at once"
            running.add(asker)
        with lock:
            running.remove(asker)

    futures = [turns.submit(f"{i % 7}", lambda name=f"{i % 7}": alone(name)) for i in range(500)]  # type: ignore[misc]
    for future in futures:
        future.result(PATIENCE)
