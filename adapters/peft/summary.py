"""The facts of a compiled adapter: those that its card shows, and those by which mixtures are judged."""

import re
from collections import Counter

from ..bypass import Bypass
from ..facts import AdapterFacts
from ..primitives import InputRotation, InputScale, OutputScale, PairRotation, Primitive, Replacement, TokenRows

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def facts_of(
    bypass: Bypass, num_tensors: int, notes: tuple[str, ...] = (), unused: tuple[str, ...] = ()
) -> AdapterFacts:
    """Summarise a bypass. num_tensors: of the checkpoint, all of which went into it but those at `unused` modules.

    notes: as in `AdapterFacts`.
    """
    return AdapterFacts(
        method=bypass.method,
        rank=bypass.rank,
        num_bytes=bypass.num_bytes,
        primitives=_count_primitives(bypass),
        sites=len(bypass.sites),
        consumed=num_tensors,
        exclusive=bypass.exclusive,
        num_tasks=bypass.num_tasks,
        virtual_tokens=0 if bypass.prefix is None else bypass.prefix.length,
        vocabulary=bypass.vocabulary,
        notes=notes,
        inputs=_modules_with(bypass, (InputScale, InputRotation)),
        outputs=_modules_with(bypass, (OutputScale, PairRotation, Replacement, TokenRows)),
        unused=unused,
    )


def _count_primitives(bypass: Bypass) -> dict[str, int]:
    counts = Counter(primitive.kind for primitives in bypass.sites.values() for primitive in primitives)
    beside = {
        "kv_prefix": int(bypass.prefix is not None),
        "side_attention": len(bypass.side_attention or {}),
        "gate": int(bool(bypass.invocation)),
    }
    return {**counts, **{kind: count for kind, count in beside.items() if count}}


def _modules_with(bypass: Bypass, kinds: tuple[type[Primitive], ...]) -> tuple[str, ...]:
    """Return the names of the modules that have such primitives, with `*` for the number of a layer."""
    names = (name for name, primitives in bypass.sites.items() if any(isinstance(p, kinds) for p in primitives))
    return tuple(dict.fromkeys(_NUMBER.sub("*", name) for name in names))
