from peftserve.server.api.http.connection_counts import counts_of_one
from peftserve.server.api.processes.shared_counts import shared_counts, view, view_of_connections


def test_each_process_writes_its_own_and_all_see_the_sum():
    with shared_counts(3) as file:
        views = [view_of_connections(file, own) for own in range(3)]
        for number, one in enumerate(views, 1):
            one.add(number)
            one.add_from("10.0.0.1", number)
        assert [one.total for one in views] == [6, 6, 6]
        assert [one.of("10.0.0.1") for one in views] == [6, 6, 6]
        assert list(view(file)) == [0, 0, 0]
        views[0].forget(2)
        assert (views[1].total, views[1].of("10.0.0.1")) == (3, 3)
        view(file)[1] = 7
        assert list(view(file)) == [0, 7, 0]
        assert views[2].total == 3


def test_nobody_can_tell_who_meets_whom_in_a_slot():
    slots = {counts_of_one()._slot("10.0.0.1") for _ in range(20)}
    assert len(slots) > 10
