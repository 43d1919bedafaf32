from peftserve.server.deploy.engines import Engine
from peftserve.server.deploy.totals import BY_DIGEST, COUNTERS, DIGESTS, GAUGES, STATES, Totals
from peftserve.server.wire.messages import EngineStats

SAID = ("adapter_load_seconds", "damaged_adapters", "host_adapters", "host_unchanged", "replicas", "dealt")
ONE = EngineStats(
    num_running=2, steps=10, device_adapters=["a"], host_adapters=["a", "b"], running_adapters={"a": 2}, state_slots=3
)
OTHER = EngineStats(num_running=3, steps=5, device_adapters=["a", "c"], host_adapters=["c"], running_adapters={"a": 1})


def test_every_field_has_its_way_to_be_added_up():
    assert {*COUNTERS, *GAUGES, *STATES, *DIGESTS, *BY_DIGEST, *SAID} == {*EngineStats.__struct_fields__}


def test_numbers_are_added_and_lists_joined():
    total = Totals().sum([ONE, OTHER], ONE, num_ready=1)
    assert (total.num_running, total.replicas) == (5, 1)
    assert (total.device_adapters, total.host_adapters) == (["a", "c"], ["a", "b", "c"])
    assert (total.running_adapters, total.state_slots, total.state_snapshots) == ({"a": 3}, 3, None)


def test_counters_do_not_go_back_when_a_replica_has_gone():
    totals = Totals()
    totals.count(Engine("one"), ONE)
    totals.count(Engine("other"), OTHER)
    total = totals.sum([OTHER], OTHER, num_ready=1)
    assert (total.steps, total.num_running) == (15, 3)


def test_what_an_engine_tells_again_is_counted_once():
    totals, engine = Totals(), Engine("one")
    for steps in (10, 10, 12):
        totals.count(engine, EngineStats(steps=steps))
    assert totals.sum([], EngineStats(), num_ready=0).steps == 12


def test_events_are_told_once():
    newest = EngineStats(adapter_load_seconds=[0.5], damaged_adapters=["x"], host_unchanged=True)
    total = Totals().sum([ONE, newest], newest, num_ready=2)
    assert (total.adapter_load_seconds, total.damaged_adapters) == ([0.5], ["x"])
    assert (total.host_unchanged, total.host_adapters) == (True, [])
    assert Totals().sum([ONE, newest], ONE, num_ready=2).damaged_adapters == []
