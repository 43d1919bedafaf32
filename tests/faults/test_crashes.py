"""A crash at every change of the disk, and errors at each, of whatever changes a state folder."""

import errno
from pathlib import Path

import pytest

from .crashes import CRASH, Fault, find
from .injector import Mode, compiler
from .operations import OFFLINE, OPERATIONS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler() is None, reason="there is no C compiler for the library that gives faults"),
]

FAILING = ("new version", "deletion for good", "route")


@pytest.mark.parametrize("half", [0, 1])
def test_a_crash_at_every_change_leaves_all_of_an_operation_or_nothing(quick_folder: Path, half: int) -> None:
    names = [*OPERATIONS, *OFFLINE][half::2]
    found = find(quick_folder, names, [CRASH])
    assert [line for line in found if "why" in line] == []
    assert [line["operation"] for line in found] == names
    assert all(line["calls"] > 5 for line in found), "the faults have not come"


def test_a_disk_that_is_full_or_fails_leaves_all_of_an_operation_or_nothing(quick_folder: Path) -> None:
    faults = [Fault(Mode.FAIL, errno.EIO), Fault(Mode.FAIL, errno.ENOSPC, lasting=True)]
    found = find(quick_folder, FAILING, faults)
    assert [line for line in found if "why" in line] == []
    assert [line["operation"] for line in found] == [*FAILING]
