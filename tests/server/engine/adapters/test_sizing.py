"""The arena's size follows from the model's own linears, from what is registered and from the free memory."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from peftserve.adapters.bypass import Bypass
from peftserve.adapters.primitives import LowRank
from peftserve.adapters.sites import Site, SiteKind, SiteTable
from peftserve.kernels.bypass.layout import Group
from peftserve.server.engine.adapters.packing import SiteGroups, pack
from peftserve.server.engine.adapters.sizing import arena_bytes, largest_stored_bytes, linear_groups, lora_bytes

GIB, MIB = 1 << 30, 1 << 20
GROUPS = SiteGroups(
    groups=(
        Group(in_features=100, out_features=(64, 33), gather=True),
        Group(in_features=33, out_features=(7, 60)),
        Group(in_features=60, out_features=(33,)),
        Group(in_features=33, out_features=(100,)),
    ),
    places={"embed": (0, 0), "gate": (1, 0), "up": (1, 1), "down": (2, 0), "head": (3, 0)},
)
KINDS = {"embed": SiteKind.EMBEDDING, "head": SiteKind.HEAD}
TABLE = SiteTable(
    {name: Site(name, KINDS.get(name, SiteKind.LINEAR), 1, 1) for name in GROUPS.places}, head="head", tied_head=None
)


@pytest.mark.parametrize(("rank", "dtype"), [(1, torch.float32), (5, torch.bfloat16), (64, torch.bfloat16)])
def test_a_lora_is_as_large_as_the_blob_that_is_packed_of_it(rank: int, dtype: torch.dtype) -> None:
    linears = {name: place for name, place in GROUPS.places.items() if name not in KINDS}
    sites = {
        name: (
            LowRank(
                torch.ones(rank, GROUPS.groups[group].in_features),
                torch.ones(GROUPS.groups[group].out_features[place], rank),
            ),
        )
        for name, (group, place) in linears.items()
    }
    blob = pack(Bypass("LORA", sites), GROUPS, dtype)
    assert lora_bytes(linear_groups(GROUPS, TABLE), rank, dtype) == blob.num_bytes


def test_the_operator_gets_what_was_asked_for() -> None:
    assert arena_bytes(4096, lora=GIB, stored=GIB, max_loras=8, free=GIB) == 4096


@pytest.mark.parametrize(
    ("lora", "stored", "free", "expected"),
    [
        (100 * MIB, 0, 100 * GIB, 800 * MIB),  # eight of the largest rank
        (100 * MIB, 150 * MIB, 100 * GIB, 1200 * MIB),  # eight of the largest that is registered
        (2 * GIB, 0, 100 * GIB, 10 * GIB),  # no more than a tenth
        (1, 0, 100 * GIB, 64 * MIB),  # adapters of other methods may be larger than that
        (1, 0, 10 * MIB, MIB),
        (2 * GIB, 15 * GIB, 100 * GIB, 15 * GIB),  # what is registered is served
        (2 * GIB, 90 * GIB, 100 * GIB, 50 * GIB),
    ],
)
def test_without_a_size_max_loras_decide_within_a_share(lora: int, stored: int, free: int, expected: int) -> None:
    assert arena_bytes(None, lora=lora, stored=stored, max_loras=8, free=free) in (expected, expected + 1, expected - 1)


def test_the_largest_adapter_of_a_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert largest_stored_bytes(None, torch.float32) == largest_stored_bytes(tmp_path / "no", torch.float32) == 0
    for name, size in (("small", 10), ("large", 1000)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.ones(size), "b": torch.ones(3, 2)}, tmp_path / name / "adapter_model.safetensors")
    assert largest_stored_bytes(tmp_path, torch.bfloat16) == 2 * 1006
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "adapter_model.safetensors").write_bytes(b"x" * 100_000)
    with caplog.at_level(logging.WARNING):
        assert largest_stored_bytes(tmp_path, torch.bfloat16) == 0
    assert "could not be read" in caplog.text
