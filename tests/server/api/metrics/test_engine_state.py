"""Names of adapters in memory. What is scraped is tested with the requests' metrics, over HTTP."""

from peftserve.server.api.metrics.engine_state import MAX_LOADED_NAMES, loaded_names
from peftserve.server.wire.messages import EngineStats


def test_names_are_bounded_and_those_on_the_device_come_first():
    asked = []

    def names_of(digest):
        asked.append(digest)
        return [f"{digest}-{i}" for i in range(2)]

    host = [f"h{i}" for i in range(10_000)]
    found = loaded_names(EngineStats(device_adapters=["d", "h3"], host_adapters=host), names_of)
    assert len(found) == MAX_LOADED_NAMES
    assert [name for name, level in found.items() if level == "gpu"] == ["d-0", "d-1", "h3-0", "h3-1"]
    assert len(asked) < MAX_LOADED_NAMES, "the others are not looked up"
