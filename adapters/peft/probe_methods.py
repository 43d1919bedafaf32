"""The methods that PEFT itself compiles (`probe`), one row a method. Each has a row in `methods.METHODS` too."""

from collections.abc import Mapping
from typing import Any

import torch

from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter
from ..private.peft_private import solve_frod_again
from .base import Base
from .config import MethodConfig
from .fields import Fields
from .patterns import Deadline
from .probe import Probed, Tensors, compile_probed
from .targets import values_at
from .tensors import Checkpoint

_SEED = (1 << 63) - 1
_COUNT = 1 << 24
_STEPS = 1000  # most steps of an iteration: more would only keep the server busy
_MAX_DRAWN = 1 << 28  # most numbers that PEFT draws beside the checkpoint's own


def _check_unilora(config: Any, names: list[str], tensors: Tensors) -> None:
    theta = tensors.get("base_model.unilora_theta_d", torch.empty(0))
    if theta.shape != (config.theta_d_length,):
        raise InvalidAdapter(
            f"theta_d_length is {config.theta_d_length}, and base_model.unilora_theta_d has the shape "
            f"{tuple(theta.shape)}",
            param="theta_d_length",
        )


def _check_tinylora(config: Any, names: list[str], tensors: Tensors) -> None:
    if (drawn := config.u * config.r**2 * len(names)) > _MAX_DRAWN:
        raise AdapterTooLarge(f"u and r have PEFT draw {drawn} numbers at load; the limit is {_MAX_DRAWN}", param="u")


def _frequencies(fields: Fields, names: list[str], deadline: Deadline) -> Mapping[str, Any]:
    """Return `n_frequency_pattern` with the names in full.

    PEFT would evaluate its expressions without a limit of time.
    """
    patterns = fields.integer_map("n_frequency_pattern", 1)
    found = values_at(patterns, 0, names, "n_frequency_pattern", deadline)
    return {"n_frequency_pattern": {name.replace(".", r"\."): n for name, n in found.items() if n}}


PROBED: Mapping[str, Probed] = {
    "UNILORA": Probed(
        "UniLoraConfig",
        {"r": _COUNT, "theta_d_length": _COUNT, "proj_seed": _SEED},
        flags="save_indices",
        rank=lambda config: int(config.r),
        casts_scales=True,
        check=_check_unilora,
    ),
    "TINYLORA": Probed(
        "TinyLoraConfig",
        {"r": _COUNT, "u": _COUNT, "projection_seed": _SEED},
        numbers="weight_tying",
        flags="save_projection",
        rank=lambda config: int(config.r),
        embeddings=True,  # its decomposition is in the checkpoint
        check=_check_tinylora,
    ),
    "PSOFT": Probed(
        "PsoftConfig",
        {"r": _COUNT, "psoft_svd_lowrank_niter": _STEPS, "random_seed": _SEED, "num_cayley_neumann_terms": _STEPS},
        numbers="psoft_alpha cayley_neumann_eps",
        flags="psoft_orth psoft_mag_a psoft_mag_b use_cayley_neumann",
        words="ab_svd_init psoft_svd",
        rank=lambda config: int(config.r),
        needs_weight=True,
        conv1d=False,
    ),
    "ADAMSS": Probed(
        "AdamssConfig",
        {"r": _COUNT, "num_subspaces": _COUNT, "subspace_rank": _COUNT, "random_seed": (1 << 32) - 1},
        numbers="svd_threshold",
        flags="use_dynamic_rank",
        rank=lambda config: int(min(config.r, config.num_subspaces * config.subspace_rank)),
        needs_weight=True,
        conv1d=False,
        requires=("sklearn", "scikit-learn"),
    ),
    "WAVEFT": Probed(
        "WaveFTConfig",
        {"n_frequency": _COUNT, "random_loc_seed": _SEED},
        numbers="scaling",
        flags="use_idwt proportional_parameters",
        words="wavelet_family",
        options=_frequencies,
    ),
    "FROD": Probed(
        "FrodConfig",
        {"projection_prng_key": _SEED},
        numbers="sparse_rate regularization_alpha",
        flags="save_projection",
        options=lambda fields, names, deadline: {"progressbar": False},
        needs_weight=True,
        replaces=True,
        settle=solve_frod_again,
    ),
}


def compile_by_peft(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile an adapter of one of the methods in `PROBED`. Raises AdapterError."""
    return compile_probed(PROBED[config.peft_type], config, checkpoint, base)
