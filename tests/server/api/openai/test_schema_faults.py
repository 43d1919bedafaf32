from peftserve.server.api.openai.schema_faults import find_fault

SCHEMA = {"properties": {"a": {"items": {"not": {}}}, "b": {}}}


def is_odd(schema):
    return "not" in str(schema) and "odd"


def test_the_innermost_part_is_found():
    assert find_fault(SCHEMA, is_odd, lambda: False) == ("properties", "a", "items")


def test_what_is_found_when_the_time_is_over_has_to_do():
    for asked, path in [(0, ()), (1, ("properties", "a")), (2, ("properties", "a", "items"))]:
        times = iter([False] * asked)
        assert find_fault(SCHEMA, is_odd, lambda times=times: next(times, True)) == path
