"""Methods whose delta depends on the base's own weight W, which is read once, when the adapter is compiled."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..bypass import Bypass
from ..errors import InvalidAdapter, UnsupportedAdapter
from ..primitives import Dense, Primitive
from ..sites import Site
from .base import Base, NamedTensor
from .config import MethodConfig
from .factored import low_rank
from .linears import require_room, sites_of
from .tensors import Checkpoint


def _tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


# All of transformers' names that stand for a fixed function.
_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_10": lambda x: F.gelu(x).clip(-10, 10),
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu2": lambda x: F.relu(x).square(),
    "prelu": lambda x: F.leaky_relu(x, 0.25),  # PEFT makes a new one at each call: its slope is not trained
    "laplace": lambda x: 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
    "hardswish": F.hardswish,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "linear": lambda x: x,
}


def compile_hra(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile an HRA adapter: W Π (I - 2 u uᵀ) for r unit vectors u.

    The product is I + P Uᵀ (the WY form of Bischof and Van Loan 1987), so the delta is (W P) Uᵀ, of rank r.
    Reads hra_u: (in_features, r). Yuan et al. 2024, arXiv:2405.17484. Raises AdapterError.
    """
    rank, orthogonal = config.fields.integer("r", 8, 1), config.fields.boolean("apply_GS")
    sites = {}
    for site in sites_of(config, base):
        found = checkpoint.take(f"{site.name}.hra_u").require_shape((site.in_features, rank), f"r={rank} takes")
        u = _orthonormal(found.weights()) if orthogonal else found.weights() / found.weights().norm(dim=0)
        p = -2 * u if orthogonal else _reflections(u)
        sites[site.name] = (low_rank(found.key, u.T, base.matrix(site.name, config.peft_type) @ p, base),)
    return Bypass(config.peft_type, sites)


def _orthonormal(u: torch.Tensor) -> torch.Tensor:
    """Orthonormalise columns by Gram and Schmidt, one after the other."""
    columns: list[torch.Tensor] = []
    for vector in u.T:
        for column in columns:
            vector = vector - (column @ vector) * column
        columns.append(vector / vector.norm())
    return torch.stack(columns, dim=1)


def _reflections(u: torch.Tensor) -> torch.Tensor:
    """Return P with Π (I - 2 u uᵀ) = I + P Uᵀ."""
    p = torch.zeros_like(u)
    for i, vector in enumerate(u.T):
        p[:, i] = -2 * (vector + p @ (u.T @ vector))
    return p


def compile_deft(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a DEFT adapter: y += Q (s · R - rightᵀ W) x.

    Q and right come from deft_P: (out_features, r): P and relu(P), or both the Q of its QR decomposition. R is deft_R:
    (r, in_features). Raises AdapterError.
    """
    most, alpha = config.fields.integer("r", 8, 1), config.fields.number("alpha", 0)
    method, para = config.fields.choice("decomposition_method", "relu", ("relu", "qr")), config.fields.boolean("para")
    sites = {}
    for site in sites_of(config, base):
        rank = min(most, site.out_features)
        why = f"rank {rank} at {site.name} takes"
        p = checkpoint.take(f"{site.name}.deft_P").require_shape((site.out_features, rank), why)
        q = p.weights() if method == "relu" else torch.linalg.qr(p.weights()).Q
        a = -((q.relu() if method == "relu" else q).T @ base.matrix(site.name, config.peft_type))
        if not para:
            r = checkpoint.take(f"{site.name}.deft_R").require_shape((rank, site.in_features), why).weights()
            a = a + r * (alpha / rank if alpha else 1.0)
        sites[site.name] = (low_rank(p.key, a, q, base),)
    return Bypass(config.peft_type, sites)


def compile_peanut(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a PEANUT adapter, whose delta is a small network of W: ΔWᵀ = s · decode(encode(f(Wᵀ Aᵀ))) Bᵀ.

    Reads peanut_A.weight: (r, out_features), peanut_B.weight: (out_features, r), and (r, r) of each coder.
    Raises AdapterError.
    """
    rank, depth = config.fields.integer("r", 32, 1), config.fields.integer("depth", 0, 0)
    scaling, name = config.fields.number("scaling", 1.0), config.fields.choice("act_fn", "relu", tuple(_ACTIVATIONS))
    if depth > 256:
        raise InvalidAdapter(f"depth is {depth}; the limit is 256", param="depth")
    act, sites = _ACTIVATIONS[name], {}
    for site in sites_of(config, base):
        why = f"rank {rank} at {site.name} takes"
        a = checkpoint.take(f"{site.name}.peanut_A.weight").require_shape((rank, site.out_features), why).weights()
        b = checkpoint.take(f"{site.name}.peanut_B.weight").require_shape((site.out_features, rank), why).weights()
        h = act(base.matrix(site.name, config.peft_type).T @ a.T)
        coders = {
            kind: [
                checkpoint.take(f"{site.name}.peanut_{kind}.{i}.weight").require_shape((rank, rank), why).weights()
                for i in range(depth)
            ]
            for kind in ("encoders", "decoders")
        }
        residuals = []
        for encoder in coders["encoders"]:
            residuals.append(h)
            h = act(h @ encoder.T)
        for decoder in coders["decoders"]:
            h = act(h @ decoder.T) + residuals.pop()
        sites[site.name] = (_balanced(site, h, scaling * b, base),)
    return Bypass(config.peft_type, sites)


def _balanced(site: Site, h: torch.Tensor, b: torch.Tensor, base: Base) -> Primitive:
    """Return b hᵀ as low-rank factors with an orthonormal a.

    The columns of h are large and nearly parallel after a few layers, and what they have in common cancels in b: as
    factors they would lose most digits of a coarse type.
    """
    q, r = torch.linalg.qr(NamedTensor(site.name, h).weights().double())
    return low_rank(site.name, q.T.float(), (b.double() @ r.T).float(), base)


def compile_osf(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile an OSF adapter: W's singular directions below the first `effective_rank` replaced by others.

    The delta is the difference of the two low parts, of rank twice theirs, or dense where that is smaller. Modules
    with no direction below are the base's own. Nayak et al. 2025, arXiv:2504.07097. Raises AdapterError.
    """
    sites = sites_of(config, base)
    if transposed := [site.name for site in sites if site.transposed]:
        raise UnsupportedAdapter(f"OSF is not supported yet on Conv1D layers: {transposed[0]}", param="target_modules")
    lows = {site.name: _low_rank_of(site, checkpoint) for site in sites}
    for site in (site for site in sites if not lows[site.name]):
        _low_parts(site, 0, checkpoint)
    if not (sites := [site for site in sites if lows[site.name]]):
        raise InvalidAdapter(
            "effective_rank leaves no direction anywhere: the adapter does nothing", param="effective_rank"
        )
    dense = [s for s in sites if 2 * lows[s.name] * (s.in_features + s.out_features) >= s.in_features * s.out_features]
    require_room(dense, base)
    return Bypass(config.peft_type, {s.name: (_osf(s, lows[s.name], s in dense, checkpoint, base),) for s in sites})


def _low_rank_of(site: Site, checkpoint: Checkpoint) -> int:
    low = checkpoint.take(f"{site.name}.osf_svd_params.S_low")
    most = min(site.in_features, site.out_features) - 1
    if low.tensor.dim() != 1 or low.tensor.numel() > most:
        raise InvalidAdapter(
            f"{low.key} has the shape {tuple(low.tensor.shape)}; {site.name} has {most} low directions at most",
            param="files",
        )
    return low.tensor.numel()


def _low_parts(site: Site, low: int, checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stem, why = f"{site.name}.osf_svd_params", f"{low} low directions at {site.name} take"
    u = checkpoint.take(f"{stem}.U_low").require_shape((site.out_features, low), why).weights()
    s = checkpoint.take(f"{stem}.S_low").weights()
    return u, s, checkpoint.take(f"{stem}.V_low").require_shape((low, site.in_features), why).weights()


def _osf(site: Site, low: int, dense: bool, checkpoint: Checkpoint, base: Base) -> Primitive:
    u, s, v = _low_parts(site, low, checkpoint)
    own_u, own_s, own_v = torch.linalg.svd(base.matrix(site.name, "OSF"), full_matrices=False)
    own_u, own_s, own_v = own_u[:, -low:], own_s[-low:], own_v[-low:]
    if dense:
        return Dense(NamedTensor(site.name, (u * s) @ v - (own_u * own_s) @ own_v).converted(base.dtype))
    return low_rank(site.name, torch.cat([v, own_v]), torch.cat([u * s, -own_u * own_s], dim=1), base)


def compile_miss(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a MISS adapter: y += Mᵀ Σ x over blocks of r features; as `bat`, W M + M by blocks.

    PEFT before 0.17 calls it BONE. Kang and Yin 2024, arXiv:2409.15371. Raises AdapterError.
    """
    form, rank = config.fields.value("init_weights"), config.fields.integer("r", 64, 1)
    sites = sites_of(config, base)
    if form == "bat":
        require_room(sites, base)
        return Bypass(config.peft_type, {s.name: (_bat(s, rank, config, checkpoint, base),) for s in sites})
    if not (form is None or isinstance(form, bool) or form == "mini"):
        raise InvalidAdapter(
            f"init_weights must be true, false, bat or mini, not {repr(form)[:80]}", param="init_weights"
        )
    width = config.fields.integer("mini_r", 1, 1) if form == "mini" else None
    return Bypass(config.peft_type, {s.name: (_miss(s, rank, width, config, checkpoint, base),) for s in sites})


def _block(site: Site, config: MethodConfig, checkpoint: Checkpoint) -> NamedTensor:
    return checkpoint.take(f"{site.name}.{'bone' if config.peft_type == 'BONE' else 'miss'}_block")


def _miss(site: Site, rank: int, width: int | None, *rest: Any) -> Primitive:
    config, checkpoint, base = rest
    if rank > site.in_features or site.out_features % (width or 1):
        raise InvalidAdapter(f"r={rank} or mini_r={width} does not fit {site.name}", param="r")
    shape = (rank, width or site.out_features)
    m = _block(site, config, checkpoint).require_shape(shape, f"r={rank} at {site.name} takes")
    whole = m.weights().repeat(1, site.out_features // shape[1])
    sums = torch.eye(rank).repeat(1, -(-site.in_features // rank))[:, : site.in_features]
    return low_rank(m.key, sums, whole.T, base)


def _bat(site: Site, rank: int, config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Primitive:
    if site.in_features % rank or site.out_features % rank:
        raise InvalidAdapter(f"r={rank} does not divide {site.name}, as init_weights='bat' needs", param="r")
    shape = (site.out_features // rank, rank, rank)
    m = _block(site, config, checkpoint).require_shape(shape, f"r={rank} at {site.name} takes")
    blocks = base.matrix(site.name, config.peft_type).reshape(shape[0], rank, -1, rank).permute(2, 0, 1, 3)
    delta = blocks @ m.weights() + m.weights()
    whole = delta.permute(1, 2, 0, 3).reshape(site.out_features, site.in_features)
    return Dense(NamedTensor(m.key, whole).converted(base.dtype))
