"""Errors of the engine keep their class, and what they say, on their way."""

import pytest

from peftserve.adapters.errors import AdapterDamaged, AdapterError
from peftserve.server.wire import faults
from peftserve.server.wire.faults import EngineFault, received


@pytest.mark.parametrize("fault", EngineFault.__subclasses__())
def test_a_fault_is_received_as_what_it_was(fault: type[EngineFault]) -> None:
    got = received(fault.__name__, "why")
    assert type(got) is fault
    assert isinstance(got, EngineFault)
    assert (got.message, got.retry_seconds) == ("why", fault.retry_seconds)


def test_so_is_an_error_of_an_adapter() -> None:
    got = received("AdapterDamaged", "gone", "files")
    assert type(got) is AdapterDamaged
    assert (got.message, got.param) == ("gone", "files")
    assert type(received("never heard of", "x")) is AdapterError
    assert faults.__doc__
    assert all(fault.__name__ in faults.__doc__ for fault in EngineFault.__subclasses__())
