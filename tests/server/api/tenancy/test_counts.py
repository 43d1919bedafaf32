from peftserve.server.api.processes.shared_counts import shared_counts, view_of_tenants


def test_each_process_writes_its_own_and_reads_those_of_all():
    with shared_counts(3) as file:
        views = [view_of_tenants(file, own) for own in range(3)]
        names = [f"tenant {i}" for i in range(500)]
        for number, name in enumerate(names):
            views[number % 3].add(name, number)
        views[0].add("one", 2)
        views[2].add("one", 3)
        assert [view.of("one") for view in views] == [5, 5, 5]
        right = sum(views[1].of(name) == number for number, name in enumerate(names))
        assert right == len(names), "hundreds of tenants share no count"
        views[0].forget(2)
        assert views[1].of("one") == 2
        views[0].add("one", -2)
        assert views[1].of("one") == 0
