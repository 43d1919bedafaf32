"""The plan of a merge: every module, tensor and field that is written, from configurations and headers alone.

What cannot be merged is refused here, before anything is computed. No torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InvalidAdapter
from ..peft.keys import written_key
from ..peft.listing import listed
from ..safetensors_header import MAX_TENSORS
from .configuration import merged_config
from .kinds import KINDS, Options, Ranks, check_options
from .sources import BIAS, Part, Source, check_alike, read_source
from .writer import Entry


class MergeSource(msgspec.Struct, frozen=True):
    """An adapter to merge. label: what messages call it. folder: with its files."""

    label: str
    folder: str
    weight: float


@dataclass(frozen=True)
class Module:
    """One module of the result. parts: index of a source to what it has there; a source that lacks it is left out.

    rank: of the result. Sizes and `embeds` are alike in all parts.
    """

    name: str
    parts: Mapping[int, Part]
    rank: int
    in_features: int
    out_features: int
    embeds: bool

    @property
    def has_bias(self) -> bool:
        return any(part.bias is not None for part in self.parts.values())

    @property
    def keys(self) -> tuple[str, str, str]:
        """Return the keys of A, B and the bias in the result."""
        names = ("lora_embedding_A", "lora_embedding_B") if self.embeds else ("lora_A", "lora_B")
        a, b = (written_key(self.name, factor) for factor in names)
        return a, b, written_key(self.name, BIAS)


@dataclass(frozen=True)
class MergePlan:
    """What is merged, and into what.

    kind: key of KINDS. dtype: of all factors that are written, as safetensors names it. rank: the largest of a module.
    others: key of each tensor that is copied, to the sources that have it. config: of the result.
    """

    sources: Sequence[Source]
    kind: str
    options: Options
    rank: int
    dtype: str
    modules: Sequence[Module]
    others: Mapping[str, Sequence[int]]
    config: Mapping[str, Any]

    def entries(self) -> dict[str, Entry]:
        """Return key to type and shape of all tensors that are written."""
        return dict(sorted({**dict(self._factors()), **dict(self._copies())}.items()))

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tensors that are written."""
        return sum(entry.num_bytes for entry in self.entries().values())

    def _factors(self) -> Iterator[tuple[str, Entry]]:
        for module in self.modules:
            a, b, bias = module.keys
            yield a, Entry(self.dtype, (module.rank, module.in_features))
            yield b, Entry(self.dtype, (module.out_features, module.rank))
            if module.has_bias:
                yield bias, Entry(self.dtype, (module.out_features,))

    def _copies(self) -> Iterator[tuple[str, Entry]]:
        for key, owners in self.others.items():
            info = self.sources[owners[0]].others[key]
            yield key, Entry(info.dtype, info.shape)


def plan_merge(merged: Sequence[MergeSource], options: Options) -> MergePlan:
    """Plan a merge. Raises InvalidAdapter, UnsupportedAdapter, AdapterTooLarge, OSError."""
    check_options(options, [source.weight for source in merged])
    sources = [read_source(source.label, Path(source.folder), source.weight) for source in merged]
    check_alike(sources)
    kind = options.kind_of(len(sources))
    rank = _rank(sources, kind, options)
    modules = [_module(name, sources, kind, rank) for name in sorted({name for s in sources for name in s.parts})]
    dtypes = {dtype for source in sources for dtype in source.dtypes}
    others = sorted({key for source in sources for key in source.others})
    if 3 * len(modules) + len(others) > MAX_TENSORS:
        raise InvalidAdapter(f"the adapters are on {len(modules)} modules, too many to merge", param="adapters")
    return MergePlan(
        sources,
        kind,
        options,
        rank,
        dtypes.pop() if len(dtypes) == 1 else "F32",
        modules,
        {key: [i for i, source in enumerate(sources) if key in source.others] for key in others},
        merged_config(sources, rank, {module.name: module.rank for module in modules}),
    )


def _rank(sources: Sequence[Source], kind: str, options: Options) -> int:
    """Return the rank of the result, as its configuration has it. Raises InvalidAdapter."""
    ranks = [source.rank for source in sources]
    rule = KINDS[kind].ranks
    if rule is Ranks.SUM:
        return sum(ranks)
    if rule is Ranks.EXACT:
        return options.svd_rank or sum(ranks)
    if rule is Ranks.LARGEST:
        return options.svd_rank or max(ranks)
    if len(set(ranks)) > 1:
        shown = listed([f"{source.label} has {source.rank}" for source in sources])
        raise InvalidAdapter(
            f"{kind} joins adapters of one rank, and {shown}; cat and the kinds that end in _svd join different ones",
            param="combination_type",
        )
    return ranks[0]


def _module(name: str, sources: Sequence[Source], kind: str, rank: int) -> Module:
    """Return what the result has at a module that at least one source has. Raises InvalidAdapter."""
    parts = {i: source.parts[name] for i, source in enumerate(sources) if name in source.parts}
    first = next(iter(parts.values()))
    if any(
        (part.in_features, part.out_features, part.embeds) != (first.in_features, first.out_features, first.embeds)
        for part in parts.values()
    ):
        raise InvalidAdapter(f"the adapters are of different bases: {name} has other sizes in each", param="adapters")
    if KINDS[kind].ranks is Ranks.EXACT:
        rank = min(rank, sum(part.rank for part in parts.values()))
    if KINDS[kind].ranks is Ranks.EQUAL:
        if len({part.rank for part in parts.values()}) > 1:
            shown = listed([f"{sources[i].label} has {part.rank}" for i, part in parts.items()])
            raise InvalidAdapter(
                f"{kind} joins adapters of one rank at every module, and at {name} {shown}; cat and the kinds that end "
                "in _svd join different ones",
                param="combination_type",
            )
        rank = first.rank
    return Module(name, parts, rank, first.in_features, first.out_features, first.embeds)
