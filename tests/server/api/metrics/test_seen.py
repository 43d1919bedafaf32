from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from peftserve.server.api.metrics.seen import LISTS, NAMES, seen


def test_series_that_name_anothers_are_left_out_and_lists_shortened():
    families = []
    for label in NAMES:
        family = CounterMetricFamily(f"by_{label}", "text", labels=[label, "outcome"])
        family.add_metric(["mine", "x"], 1)
        family.add_metric(["theirs", "x"], 2)
        families.append(family)
    lists = GaugeMetricFamily("lists", "text", labels=list(LISTS))
    lists.add_metric(["mine,theirs", "theirs"], 3)
    plain = GaugeMetricFamily("plain", "theirs", value=4)
    shown = {family.name: family.samples for family in seen([*families, lists, plain], lambda _, name: name == "mine")}
    assert [len(shown[f"by_{label}"]) for label in NAMES] == [1] * len(NAMES)
    assert shown["lists"][0].labels == dict(zip(LISTS, ("mine", ""), strict=True))
    assert shown["plain"][0].value == 4
