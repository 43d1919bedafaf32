"""Methods that change single entries of a weight.

    SHIRA (Bhardwaj et al. 2024, arXiv:2406.13175)  W[row, column] += v               Sparse
    SUPERTUNING (arXiv:2607.09287)                  the same, and y += s · B A x    Sparse, LowRank

PEFT has both on linear layers only, not on Conv1D.
"""

import torch

from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from ..primitives import Dense, LowRank, Primitive, Sparse
from ..sites import Site
from .base import Base, NamedTensor
from .config import MethodConfig
from .linears import require_room, sites_of
from .tensors import Checkpoint

_INDEX_BYTES = 8  # counted for an entry beside its value: its column, and as much again for reading it out of order


def compile_shira(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a SHIRA adapter. Raises InvalidAdapter.

    Reads shira_weight: (nnz,); shira_indices: (2, nnz), rows above columns; nnz = r (in + out).
    """
    r = config.fields.integer("r", 32, 1)
    return Bypass(config.peft_type, {s.name: (_shira(r, s, checkpoint, base),) for s in sites_of(config, base)})


def _shira(r: int, site: Site, checkpoint: Checkpoint, base: Base) -> Primitive:
    count = r * (site.in_features + site.out_features)
    why = f"r={r} at {site.name} takes"
    values = checkpoint.take(f"{site.name}.shira_weight").require_shape((count,), why)
    places = checkpoint.take(f"{site.name}.shira_indices").require_shape((2, count), why)
    rows, columns = _integers(places, (site.out_features, site.in_features))
    return _entries(site, values, rows, columns, base)


def compile_supertuning(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a SUPERTUNING adapter. Raises AdapterError.

    Reads supertuning_values, supertuning_indices: (nnz,), positions in the weight laid out row by row;
    supertuning_lora_A.weight: (r, in_features); supertuning_lora_B.weight: (out_features, r).
    """
    fields = config.fields
    sparsity = fields.number("sparsity", 0.99)
    if not 0.0 <= sparsity < 1.0:
        raise InvalidAdapter(f"sparsity must be at least 0 and under 1, not {sparsity}", param="sparsity")
    rank = None if fields.value("r") is None else fields.integer("r", 0, 1)
    if rank is None and fields.value("lora_alpha") is not None:
        raise InvalidAdapter("lora_alpha is set, but r is not", param="lora_alpha")
    if rank is not None and rank > base.max_rank:
        raise AdapterTooLarge(f"rank {rank} is over the server's limit of {base.max_rank}", param="r")
    sites: dict[str, tuple[Primitive, ...]] = {}
    for site in sites_of(config, base):
        count = int(site.in_features * site.out_features * (1 - sparsity))
        entries = _supertuned(count, config, site, checkpoint, base)
        scaling = None if rank is None else fields.number("lora_alpha", 2 * rank) / rank
        low_rank = () if rank is None or scaling is None else (_low_rank(rank, scaling, site, checkpoint, base),)
        sites[site.name] = (entries, *low_rank)
    return Bypass(config.peft_type, sites)


def _supertuned(count: int, config: MethodConfig, site: Site, checkpoint: Checkpoint, base: Base) -> Primitive:
    if count < 1:
        raise InvalidAdapter(f"sparsity leaves no entry of {site.name} to train", param="sparsity")
    why = f"the sparsity at {site.name} takes"
    values = checkpoint.take(f"{site.name}.supertuning_values").require_shape((count,), why)
    if config.fields.boolean("save_precomputed_indices", True):
        named = checkpoint.take(f"{site.name}.supertuning_indices").require_shape((count,), why)
        (places,) = _integers(NamedTensor(named.key, named.tensor[None]), (site.in_features * site.out_features,))
    else:
        places = _by_magnitude(count, config.fields.boolean("select_top", True), site, base)
    return _entries(site, values, places // site.in_features, places % site.in_features, base)


def _by_magnitude(count: int, largest: bool, site: Site, base: Base) -> torch.Tensor:
    """Find the positions as PEFT does, by the size of the base's weights: (count,).

    Raises UnsupportedAdapter where weights of the same size make them ambiguous.
    """
    scores = base.matrix(site.name, "SUPERTUNING").abs().flatten()
    found, places = scores.topk(min(count + 1, len(scores)), largest=largest)
    if (found[1:] == found[:-1]).any():
        raise UnsupportedAdapter(
            f"its places in {site.name} are not saved, and weights of the same size make them ambiguous; "
            "save it with save_precomputed_indices=True",
            param="save_precomputed_indices",
        )
    return places[:count]


def _low_rank(rank: int, scaling: float, site: Site, checkpoint: Checkpoint, base: Base) -> LowRank:
    why = f"rank {rank} at {site.name} takes"
    a = checkpoint.take(f"{site.name}.supertuning_lora_A.weight").require_shape((rank, site.in_features), why)
    b = checkpoint.take(f"{site.name}.supertuning_lora_B.weight").require_shape((site.out_features, rank), why)
    return LowRank(a.converted(base.dtype), b.converted(base.dtype, scaling))


def _integers(places: NamedTensor, limits: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Return positions as integers, one row for each of the limits. PEFT on Windows saves them as floats.

    Raises InvalidAdapter for positions outside of the weight.
    """
    tensor = places.tensor
    whole = tensor.long() if not tensor.is_floating_point() or tensor.isfinite().all() else None
    bounds = torch.tensor(limits)[:, None]
    if whole is None or not (whole == tensor).all() or (whole < 0).any() or (whole >= bounds).any():
        raise InvalidAdapter(f"{places.key} holds places outside of the weight", param="files")
    return whole.unbind(0)


def _entries(site: Site, values: NamedTensor, rows: torch.Tensor, columns: torch.Tensor, base: Base) -> Primitive:
    """Return the entries as Sparse, or as Dense where that is smaller.

    PEFT multiplies by the whole changed weight in both methods, so a base that quantises its inputs is refused.
    """
    base.require_own_inputs(site.name, "An adapter of single entries")
    size = base.dtype.itemsize
    if len(rows) * (_INDEX_BYTES + size) < site.in_features * site.out_features * size:
        order = rows.argsort(stable=True)
        sorted_values = NamedTensor(values.key, values.tensor[order]).converted(base.dtype)
        starts = Sparse.row_starts(rows[order], site.out_features)
        return Sparse(starts, columns[order].int(), sorted_values)
    require_room([site], base)
    w = torch.zeros(site.out_features, site.in_features)
    w.index_put_((rows, columns), values.converted(torch.float32), accumulate=True)
    return Dense(NamedTensor(values.key, w).converted(base.dtype))
