import pytest

from peftserve.server.api.admission import Admission
from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.processes.shared_counts import shared_counts, view, view_of_tenants
from peftserve.server.api.tenancy.tenant import Tenant


def test_two_processes_share_one_limit():
    with shared_counts(2) as file:
        first, second = Admission(4, view(file), 0), Admission(4, view(file), 1)
        first.enter(3)
        with pytest.raises(ApiError, match="3 of 4") as refused:
            second.enter(2)
        assert refused.value.status_code == 429
        second.enter(1)
        assert (first.in_flight, second.in_flight, first.in_flight_everywhere) == (3, 1, 4)
        second.leave(1)
        first.leave(3)
        second.enter(4)
        assert first.in_flight == 0
        with pytest.raises(ApiError, match="takes 4 at once") as refused:
            second.enter(5)
        assert refused.value.status_code == 400


async def test_each_process_waits_for_its_own_to_end():
    counts = [0, 0]
    first, second = Admission(4, counts, 0), Admission(4, counts, 1)
    second.enter(1)
    await first.idle()
    second.drain()
    with pytest.raises(ApiError, match="shutting down"):
        second.enter(1)
    assert not second._idle.is_set()
    second.leave(1)
    await second.idle()


def refusal(admission, count, tenant):
    with pytest.raises(ApiError) as refused:
        admission.enter(count, tenant)
    assert refused.value.status_code == 429
    assert int(refused.value.headers["Retry-After"]) >= 1
    return refused.value.body.code


def test_one_who_takes_all_leaves_each_other_some():
    greedy, *others = (Tenant(f"t{i}") for i in range(40))
    with shared_counts(2) as file:
        first, second = (Admission(32, view(file), own, view_of_tenants(file, own)) for own in (0, 1))
        first.enter(32, greedy)
        assert refusal(first, 1, greedy) == refusal(second, 1, greedy) == "queue_full"
        for number, tenant in enumerate(others[:16]):
            (first, second)[number % 2].enter(2, tenant)
            assert refusal(first, 1, tenant) == "queue_full", "more than its own places there are not"
        assert first.in_flight_everywhere == 64
        assert refusal(second, 1, others[20]) == "queue_full", "and no more than as many again in all"
        first.leave(32, greedy)
        first.enter(1, greedy)


def test_a_tenant_has_no_more_than_its_share_in_all_processes():
    tenant = Tenant("t", max_queued=3)
    with shared_counts(2) as file:
        first, second = (Admission(32, view(file), own, view_of_tenants(file, own)) for own in (0, 1))
        with pytest.raises(ApiError, match=r"4 sequences.*this key may have 3 in flight; ask for fewer") as refused:
            first.enter(4, tenant)
        assert refused.value.status_code == 400, "it would never be possible"
        assert "Retry-After" not in (refused.value.headers or {})
        first.enter(2, tenant)
        assert refusal(second, 2, tenant) == "rate_limit_exceeded"
        second.enter(1, tenant)
        second.enter(10, Tenant("u"))
        first.leave(2, tenant)
        second.enter(2, tenant)
