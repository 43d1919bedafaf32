import pytest

from peftserve.server.api.admission import Admission
from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.processes.shared_counts import shared_counts, view


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
