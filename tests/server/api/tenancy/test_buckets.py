import multiprocessing

import pytest

from peftserve.server.api.processes.shared_counts import shared_counts, view_of_buckets
from peftserve.server.api.tenancy.buckets import BUCKETS, TokenBuckets


def test_a_bucket_fills_by_its_limit_a_minute_and_may_be_in_debt():
    now = [1000.0]
    buckets = TokenBuckets(clock=lambda: now[0])
    assert buckets.balance("a", 600) == 600
    assert buckets.spend("a", 600, 500) == 600
    assert buckets.spend("a", 600, 200, least=200) == 100, "too few: nothing is taken"
    assert buckets.balance("a", 600) == 100
    buckets.spend("a", 600, 700)
    assert buckets.balance("a", 600) == -600
    now[0] += 90
    assert buckets.balance("a", 600) == pytest.approx(300)
    now[0] += 1e6
    assert buckets.balance("a", 600) == 600
    assert buckets.balance("b", 7) == 7
    now[0] -= 5
    assert buckets.balance("a", 600) == 600, "a clock that goes back takes nothing"


def test_tenants_whose_places_meet_have_a_bucket_each():
    buckets = TokenBuckets(clock=lambda: 0.0)
    names = [f"t{i}" for i in range(BUCKETS // 2)]
    for number, name in enumerate(names):
        buckets.spend(name, 10**6, number)
    assert [buckets.balance(name, 10**6) for name in names] == [10**6 - i for i in range(len(names))]


def _spend(file, rounds):
    buckets = view_of_buckets(file)
    for _ in range(rounds):
        buckets.spend("a", 1, 1)


def test_processes_that_spend_at_once_lose_nothing(monkeypatch):
    context = multiprocessing.get_context("fork")
    with shared_counts(2) as file:
        view_of_buckets(file).spend("a", 1, 0)
        processes = [context.Process(target=_spend, args=(file, 2000)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        assert view_of_buckets(file).balance("a", 1) < -3990, "but for what a minute's worth of 1 has filled"
