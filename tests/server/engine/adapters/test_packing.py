"""A packed bypass, read back by the kernels' own oracle, does what its factors say."""

import pytest
import torch

from peftserve.adapters.bypass import Bypass, KVPrefix, StateKey
from peftserve.adapters.primitives import LowRank, SharedLowRank, Spectral
from peftserve.kernels.bypass.layout import Group, RowSet, Segment
from peftserve.kernels.bypass.reference import naive_delta
from peftserve.server.engine.adapters.packing import ALIGNMENT, SiteGroups, pack

SITES = SiteGroups(
    groups=(
        Group(in_features=7, out_features=(5, 3, 3)),
        Group(in_features=6, out_features=(9,)),
        Group(in_features=11, out_features=(7,), gather=True),
        Group(in_features=7, out_features=(11,), rows=RowSet.LOGITS),
    ),
    places={"q": (0, 0), "k": (0, 1), "v": (0, 2), "down": (1, 0), "embed": (2, 0), "head": (3, 0)},
)


def low_rank(site: str, rank: int, seed: int = 0) -> LowRank:
    group, position = SITES.places[site]
    spec, generator = SITES.groups[group], torch.Generator().manual_seed(seed + rank)
    a = torch.randn(rank, spec.in_features, generator=generator)
    return LowRank(a, torch.randn(spec.out_features[position], rank, generator=generator))


def delta_of(bypass: Bypass, site: str, x: torch.Tensor) -> torch.Tensor:
    """By the bypass's own formula, in float64."""
    group, position = SITES.places[site]
    total = torch.zeros(len(x), SITES.groups[group].out_features[position], dtype=torch.float64)
    for part in bypass.sites.get(site, ()):
        h = part.a.double().t()[x] if SITES.groups[group].gather else x.double() @ part.a.double().t()
        total += h @ part.b.double().t()
    return total


BYPASSES = {
    "every site": {site: (low_rank(site, rank),) for rank, site in enumerate(SITES.places, 1)},
    "middle of a group": {"k": (low_rank("k", 2),)},
    "ends of a group": {"v": (low_rank("v", 4),), "q": (low_rank("q", 1),)},
    "embedding": {"embed": (low_rank("embed", 3),)},
    "several at a site": {
        "q": (low_rank("q", 2), low_rank("q", 3)),
        "embed": (low_rank("embed", 2), low_rank("embed", 1)),
    },
}


@pytest.mark.parametrize("name", BYPASSES)
def test_what_is_packed_does_what_the_bypass_says(name: str) -> None:
    bypass = Bypass("LORA", BYPASSES[name])
    blob = pack(bypass, SITES, torch.float32)
    base = 64
    arena = torch.full((base + blob.data.numel() + 64,), float("nan"))
    arena[base : base + blob.data.numel()] = blob.data
    slots = {2: (base, blob.layout.groups)}
    for site, (group, position) in SITES.places.items():
        spec = SITES.groups[group]
        x = torch.arange(4) * 3 % spec.in_features if spec.gather else torch.randn(4, spec.in_features)
        delta = naive_delta(arena, SITES.groups, slots, [Segment(2, 1.0, 0, 4)], group, position, x)
        torch.testing.assert_close(delta, delta_of(bypass, site, x))


@pytest.mark.parametrize("name", BYPASSES)
def test_every_factor_is_aligned_and_untouched_groups_are_absent(name: str) -> None:
    bypass = Bypass("LORA", BYPASSES[name])
    blob = pack(bypass, SITES, torch.bfloat16)
    assert blob.data.dtype == torch.bfloat16
    assert blob.num_bytes == 2 * blob.data.numel()
    assert set(blob.layout.groups) == {SITES.places[site][0] for site in bypass.sites}
    for layout in blob.layout.groups.values():
        assert layout.a % ALIGNMENT == 0
        assert all(offset % ALIGNMENT == 0 for offset in layout.b)


def test_the_blob_has_no_padding_but_the_alignment() -> None:
    bypass = Bypass("LORA", {"q": (low_rank("q", 1),)})
    assert pack(bypass, SITES, torch.float32).data.numel() == 2 * ALIGNMENT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_states_behind_a_prefix_are_kept_in_their_own_types(dtype: torch.dtype) -> None:
    states = {
        StateKey("conv", 0, 0): torch.randn(3, 2).bfloat16(),
        StateKey("recurrent", 1, 0): torch.randn(2, 5, 5),
    }
    blob = pack(Bypass("PROMPT_TUNING", {}, prefix=KVPrefix(7, {}, states)), SITES, dtype)
    assert blob.layout.prefix_length == 7
    found = {key: place.view(blob.data, 0) for key, place in blob.layout.states}
    assert found.keys() == states.keys()
    for key, state in states.items():
        assert found[key].dtype == state.dtype
        assert torch.equal(found[key], state)


def test_what_modules_share_lies_beside_the_blob_once() -> None:
    a, b = torch.randn(2, 7), torch.randn(9, 2)
    sites = {
        "q": (SharedLowRank(a, b, torch.randn(2), torch.randn(5)),),
        "k": (SharedLowRank(a, b, torch.randn(2), torch.randn(3)),),
    }
    blob, again = (pack(Bypass("VERA", sites), SITES, torch.float32) for _ in range(2))
    assert [piece.key for piece in blob.shared] == [piece.key for piece in again.shared]
    assert len({piece.key for piece in blob.shared}) == 2
    arena = torch.full((512,), float("nan"))
    shared = dict(zip((piece.key for piece in blob.shared), (64, 128), strict=True))
    for piece, start in zip(blob.shared, shared.values(), strict=True):
        arena[start : start + piece.data.numel()] = piece.data
    arena[256 : 256 + blob.data.numel()] = blob.data
    for name, (primitive,) in sites.items():
        [op] = blob.layout.ops[name]
        for field, tensor in primitive.tensors().items():
            assert torch.equal(op.places[field].view(arena, 256, shared), tensor)
    other = pack(
        Bypass("VERA", {"q": (SharedLowRank(a + 1, b, torch.randn(2), torch.randn(5)),)}), SITES, torch.float32
    )
    assert {p.key for p in other.shared} & {p.key for p in blob.shared} == {blob.layout.ops["q"][0].places["b"].shared}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_that_modules_share_lie_beside_the_blob_too(dtype: torch.dtype) -> None:
    starts, columns = (torch.tensor(ids, dtype=torch.int32) for ids in ([0, 2, 70_001, 3], [5, 70_000, 1]))
    values = {"q": torch.tensor([0.5, -2.0, 1.0]), "k": torch.tensor([1.5, 2.0, 3.0])}
    sites = {site: (Spectral(starts, columns, numbers, 0.1, 5),) for site, numbers in values.items()}
    blob = pack(Bypass("FOURIERFT", sites), SITES, dtype)
    assert len(blob.shared) == 2
    arena = torch.full((512,), float("nan"), dtype=dtype)
    shared = dict(zip((piece.key for piece in blob.shared), (64, 128), strict=True))
    for piece, start in zip(blob.shared, shared.values(), strict=True):
        arena[start : start + piece.data.numel()] = piece.data
    arena[256 : 256 + blob.data.numel()] = blob.data
    for name, (primitive,) in sites.items():
        [op] = blob.layout.ops[name]
        assert op.values == {"scale": 0.1, "out_features": 5}
        for field, tensor in primitive.tensors().items():  # the values are exact in either type
            assert op.places[field].view(arena, 256, shared).tolist() == tensor.tolist()
