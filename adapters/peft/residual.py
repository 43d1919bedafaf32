"""LoRA that subtracts its initial factors from the base's weight before it trains.

The base stays as it is here, so they are subtracted from the adapter.

    PiSSA (Meng et al. 2024, arXiv:2404.02948)       the r largest singular values of W
    OLoRA (Büyükakyüz 2024, arXiv:2406.01775)        s times the first r columns of Q and rows of R, W = QR
    KaSA (Wang et al. 2024, arXiv:2412.06071)        the r smallest singular values of W

All can be computed again from the base alone: W x - B0 A0 x + s B A x is a LoRA of rank 2r, whose A has A0 below it
and whose B has -B0 beside it.
"""

from collections.abc import Callable, Mapping

import torch

from ..errors import AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from ..sites import Site
from .base import Base, NamedTensor

Factors = tuple[torch.Tensor, torch.Tensor]


def without_initial_factors(
    name: str, site: Site, a: NamedTensor, b: NamedTensor, scaling: float, base: Base
) -> tuple[NamedTensor, NamedTensor]:
    """Return the factors of the LoRA less its initial factors, of rank 2r.

    name: a key of INITIAL_FACTORS. a: (r, in_features), b: (out_features, r), scaled. Raises AdapterError.
    """
    rank = a.tensor.shape[0]
    if site.name in base.replaced:
        return a, b  # the copy that PEFT saved of an embedding or a head is already without them
    if base.table.tied_head and site.name in (base.table.head, base.table.tied_head):
        raise UnsupportedAdapter(
            f"{name} on {site.name} is not supported yet: it changes the embedding that is tied to it; "
            "train with it left out of target_modules",
            param="init_lora_weights",
        )
    if name == "olora":  # as to PiSSA and KaSA, PEFT itself refuses such a base, or leaves its weight alone
        base.require_one_rounding(site.name, _TITLES[name])
    if 2 * rank > base.max_rank:
        raise AdapterTooLarge(
            f"{name} of rank {rank} is served with twice the rank; the server's limit is {base.max_rank}", param="r"
        )
    a0, b0 = INITIAL_FACTORS[name](site, rank, scaling, base.matrix(site.name, _TITLES[name], on_device=True))
    return (
        NamedTensor(a.key, torch.cat((a.tensor.float(), a0.cpu()))),
        NamedTensor(b.key, torch.cat((b.tensor, -b0.cpu()), dim=1)),
    )


def _pissa(_: Site, rank: int, __: float, weight: torch.Tensor) -> Factors:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return right[:rank], left[:, :rank] * values[:rank]


def _olora(site: Site, rank: int, scaling: float, weight: torch.Tensor) -> Factors:
    """Return the first directions of W = QR. PEFT decomposes the weight as stored, which is transposed in Conv1D."""
    q, r = torch.linalg.qr(weight.T if site.transposed else weight)
    a, b = r[:rank], scaling * q[:, :rank]
    return (b.T, a.T) if site.transposed else (a, b)


def _kasa(site: Site, rank: int, _: float, weight: torch.Tensor) -> Factors:
    if rank >= min(weight.shape) or site.transposed:
        raise InvalidAdapter(
            f"kasa_config at {site.name} takes a linear layer and a rank below {min(weight.shape)}", param="kasa_config"
        )
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return right[-rank:], left[:, -rank:] * values[-rank:]


_TITLES: Mapping[str, str] = {"pissa": "PiSSA", "olora": "OLoRA", "kasa": "KaSA"}
INITIAL_FACTORS: Mapping[str, Callable[[Site, int, float, torch.Tensor], Factors]] = {
    "pissa": _pissa,
    "olora": _olora,
    "kasa": _kasa,
}
