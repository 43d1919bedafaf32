"""The adapters that go into a merge, as far as their configurations and headers tell. Reads no tensor; no torch.

Only plain LoRA is merged, in all its spellings. Of other forms the sum of two is no such form, or what PEFT makes of
them is not what was trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidAdapter, UnsupportedAdapter, prefix_errors
from ..files import WEIGHTS, read_raw_config
from ..peft.config import LoraConfig, parse_config
from ..peft.keys import Keys, sort_keys
from ..peft.listing import listed
from ..peft.patterns import Deadline
from ..peft.targets import values_at
from ..peft.variant import LoraVariant
from ..safetensors_header import FLOATING, TensorInfo, read_header

BIAS = "lora_B.bias"
_FACTORS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
# Parts of an adapter that are no factors: they have to be the same in all that are merged.
_SHARED = ("modules_to_save", "trainable_token_indices", "alora_invocation_tokens")


@dataclass(frozen=True)
class Part:
    """What one adapter has at one module.

    a, b, bias: keys of its tensors; A: (rank, in_features), B: (out_features, rank), bias: (out_features,) or None.
    scaling: of B A in this adapter. embeds: whether the module is an embedding.
    """

    a: str
    b: str
    bias: str | None
    rank: int
    in_features: int
    out_features: int
    scaling: float
    embeds: bool


@dataclass(frozen=True)
class Source:
    """One adapter. parts: by module. others: key to entry of all tensors that are no factors."""

    label: str
    folder: Path
    weight: float
    config: LoraConfig
    raw: Mapping[str, Any]
    parts: Mapping[str, Part]
    others: Mapping[str, TensorInfo]
    dtypes: frozenset[str]

    @property
    def rank(self) -> int:
        """Return the largest rank that the configuration names, which PEFT takes for the adapter's."""
        return max(self.config.r, *self.config.ranks.values(), 0)


def read_source(label: str, folder: Path, weight: float) -> Source:
    """Read an adapter's configuration and header. Raises AdapterError that names it, OSError."""
    with prefix_errors(label):
        raw = read_raw_config(folder)
        config = _plain(parse_config(raw))
        header = read_header(folder / WEIGHTS)
        idle = config.variant.idle
        keys = sort_keys(key for key in header if not idle or f".{idle}" not in key)
        if config.tie and any("lora_embedding_A" in found for found in keys.factors.values()):
            raise UnsupportedAdapter(
                "ensure_weight_tying makes the embedding's factors the head's too, which a merge would part; train "
                "without it",
                param="ensure_weight_tying",
            )
        used = [header[key] for found in keys.factors.values() for key in found.values()]
        return Source(
            label=label,
            folder=folder,
            weight=weight,
            config=config,
            raw=raw,
            parts=_parts(config, keys, header),
            others={key: header[key] for key in keys.unknown},
            dtypes=frozenset(info.dtype for info in used),
        )


def check_alike(sources: Sequence[Source]) -> None:
    """Raise UnsupportedAdapter where adapters have parts that are no factors, and not the same ones.

    Whether these hold the same bytes is seen when they are copied.
    """
    first = sources[0]
    for source in sources[1:]:
        for name in (*_SHARED, "bias"):
            if _setting(first.raw, name) != _setting(source.raw, name):
                raise UnsupportedAdapter(
                    f"{first.label} and {source.label} differ in {name}, which no merge can join: only factors of LoRA "
                    "are merged, and what lies beside them must be the same in all",
                    param="adapters",
                )
        odd = [key for key, info in source.others.items() if not _goes_with(key, info, first)]
        odd += [key for key, info in first.others.items() if not _goes_with(key, info, source)]
        if odd:
            raise UnsupportedAdapter(
                f"{first.label} and {source.label} do not both have {listed(odd)}, or not in one shape: only factors "
                "of LoRA are merged, and what lies beside them must be the same in all",
                param="adapters",
            )


def _goes_with(key: str, info: TensorInfo, other: Source) -> bool:
    """Return whether a tensor that is no factor agrees with another adapter.

    PEFT saves an embedding or a head beside the factors that are on it, which an adapter that is not on it lacks.
    """
    there = other.others.get(key)
    if there is None:
        return key.endswith(".base_layer.weight")
    return (there.dtype, there.shape) == (info.dtype, info.shape)


def _setting(raw: Mapping[str, Any], name: str) -> Any:
    value = raw.get(name) or None
    return None if value == "none" else value


def _plain(config: object) -> LoraConfig:
    """Return the configuration of a LoRA that can be merged. Raises UnsupportedAdapter."""
    if not isinstance(config, LoraConfig):
        method = getattr(config, "peft_type", "?")
        raise UnsupportedAdapter(f"only LoRA adapters are merged, not {method}", param="adapters")
    if config.parameters:
        raise UnsupportedAdapter(
            "target_parameters: factors on parameters are not merged, as in PEFT", param="adapters"
        )
    variant = config.variant
    if variant != LoraVariant(bias=variant.bias, invocation=variant.invocation, idle=variant.idle):
        raise UnsupportedAdapter(
            f"{_form(variant)} is no plain product B A, so no merge of the factors is one of the adapters; mix them by "
            "the field `adapters` instead",
            param="adapters",
        )
    return config


def _form(variant: LoraVariant) -> str:
    forms = {
        "DoRA": variant.dora,
        "KaSA": variant.kasa,
        "BD-LoRA": variant.blocks,
        "QALoRA": variant.pool,
        "Arrow": variant.arrow,
        f"init_lora_weights={variant.start!r}": variant.start,
    }
    return next(name for name, there in forms.items() if there)


def _parts(config: LoraConfig, keys: Keys, header: Mapping[str, TensorInfo]) -> dict[str, Part]:
    deadline = Deadline()
    alphas = values_at(config.alphas, config.alpha, keys.factors, "alpha_pattern", deadline)
    parts = dict(_parts_of(config, keys, header, alphas))
    if not parts:
        raise InvalidAdapter("the checkpoint holds no factors of LoRA", param="adapters")
    return parts


def _parts_of(
    config: LoraConfig, keys: Keys, header: Mapping[str, TensorInfo], alphas: Mapping[str, float]
) -> Iterator[tuple[str, Part]]:
    for module, found in keys.factors.items():
        names = next((pair for pair in _FACTORS if set(pair) <= found.keys()), None)
        if names is None or found.keys() - {*names, BIAS}:
            raise InvalidAdapter(f"{module} has {listed(sorted(found))}, not the two factors of LoRA", param="adapters")
        a, b = (header[found[name]] for name in names)
        bias = header[found[BIAS]] if BIAS in found else None
        _check_shapes(module, a, b, bias)
        yield (
            module,
            Part(
                *(found[names[0]], found[names[1]], found.get(BIAS)),
                rank=a.shape[0],
                in_features=a.shape[1],
                out_features=b.shape[0],
                scaling=config.scaling(a.shape[0], alphas[module]),
                embeds=names == _FACTORS[1],
            ),
        )


def _check_shapes(module: str, a: TensorInfo, b: TensorInfo, bias: TensorInfo | None) -> None:
    fit = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] > 0
    if not fit or (bias is not None and bias.shape != b.shape[:1]):
        raise InvalidAdapter(f"the factors of {module} do not fit each other: {a.shape}, {b.shape}", param="adapters")
    if not {info.dtype for info in (a, b, *([bias] if bias else []))} <= set(FLOATING):
        raise InvalidAdapter(f"the factors of {module} are no floating-point numbers", param="adapters")
