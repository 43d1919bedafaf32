"""The adapters of a merge: compiled, and judged by whether their weighted sum is a change of weights at all."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftserve.adapters.bypass import Bypass
from peftserve.adapters.errors import prefix_errors
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.files import FILES, digest_of, read_raw_config
from peftserve.adapters.mixing import Ingredient, check_mixture
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.peft.listing import listed
from peftserve.adapters.sites import SiteKind, SiteTable

from .bases import MergeBase
from .errors import MergeRefused
from .folding import FOLDABLE, Share
from .skeleton import COMPUTED

MAX_RANK = 1 << 16  # merging has no arena: whatever fits into memory

_VIRTUAL = "it puts virtual tokens before the prompt, and a checkpoint has no place for them"
_BY_METHOD: Mapping[str, str] = {
    "PROMPT_TUNING": _VIRTUAL,
    "MULTITASK_PROMPT_TUNING": _VIRTUAL,
    "P_TUNING": _VIRTUAL,
    "CPT": _VIRTUAL,
    "PREFIX_TUNING": _VIRTUAL,
    "CARTRIDGE": _VIRTUAL,
    "ADAPTION_PROMPT": "it adds an attention of its own beside the base's",
}
_BY_PRIMITIVE: Mapping[str, str] = {
    "kv_prefix": _VIRTUAL,
    "side_attention": "it adds an attention of its own beside the base's",
    "bottleneck": "it is a network behind modules of the base, which is not affine",
    "parallel_bottleneck": "it is a network beside modules of the base, which is not affine",
    "routed_low_rank": "which of its experts work depends on the token",
    "gate": "it works only behind the tokens that invoke it",
}
_INSTEAD = "serve it unmerged, with peftserve serve"


@dataclass(frozen=True)
class Chosen:
    """One adapter that is to be merged.

    name: as messages and the model card call it. folder: of its files.
    """

    name: str
    folder: Path
    weight: float


@dataclass(frozen=True)
class Member:
    """One adapter, compiled against the base. weight: the sum over all its mentions. digest: of its files."""

    name: str
    digest: str
    weight: float
    bypass: Bypass
    facts: AdapterFacts


def compile_members(chosen: Sequence[Chosen], base: MergeBase, max_dense_delta: int) -> list[Member]:
    """Compile the adapters of a merge. Raises MergeRefused, AdapterError, OSError."""
    weights: dict[str, tuple[Chosen, float]] = {}
    for one in chosen:
        digest = _digest(one)
        first, before = weights.get(digest, (one, 0.0))
        weights[digest] = first, before + one.weight
    members = [_compiled(one, digest, weight, base, max_dense_delta) for digest, (one, weight) in weights.items()]
    check_mixture([Ingredient(member.name, member.weight, member.facts) for member in members])
    return members


def shares_by_site(members: Sequence[Member]) -> dict[str, list[Share]]:
    """Return what each adapter has at each module that any of them changes."""
    shares: dict[str, list[Share]] = {}
    for member in members:
        for site, primitives in member.bypass.sites.items():
            shares.setdefault(site, []).append(Share(member.weight, primitives))
    return shares


def _digest(one: Chosen) -> str:
    """Return the digest of the adapter's files, beside which a folder may hold others. Raises MergeRefused, OSError."""
    hashes = {}
    for name in FILES:
        if not (one.folder / name).is_file():
            raise MergeRefused(f"{one.name} cannot be merged: its folder holds no {name}")
        with (one.folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of(hashes)


def _compiled(one: Chosen, digest: str, weight: float, base: MergeBase, max_dense_delta: int) -> Member:
    with prefix_errors(one.name):
        method = read_raw_config(one.folder).get("peft_type")
        if isinstance(method, str) and method in _BY_METHOD:
            raise _refused(one, _BY_METHOD[method])
        compiled = compile_adapter(
            one.folder,
            base.table,
            COMPUTED,
            max_rank=MAX_RANK,
            model=base.compiled_against,
            max_dense_delta=max_dense_delta,
            runs=False,
        )
    _check(one, compiled.bypass, compiled.facts, base.table)
    return Member(one.name, digest, weight, compiled.bypass, compiled.facts)


def _check(one: Chosen, bypass: Bypass, facts: AdapterFacts, table: SiteTable) -> None:
    """Raise MergeRefused for what is no change of weights."""
    for kind in facts.primitives:
        if kind in _BY_PRIMITIVE:
            raise _refused(one, _BY_PRIMITIVE[kind])
        if kind not in FOLDABLE:
            raise _refused(one, f"it has a {kind.replace('_', ' ')}, which is not affine")
    if facts.unused:
        raise _refused(one, f"it is also on {listed(facts.unused)}, which no text passes and are not merged")
    if facts.num_tasks:
        raise _refused(one, f"it is {facts.num_tasks} tasks in one, of which each request names another")
    if table.embedding is not None and 0 < bypass.vocabulary < (own := table.sites[table.embedding].in_features):
        raise _refused(one, f"it was trained with the first {bypass.vocabulary} of the base's {own} tokens alone")
    for name, primitives in bypass.sites.items():
        if table.sites[name].kind is SiteKind.NORM and any(p.kind != "replacement" for p in primitives):
            raise _refused(one, f"it changes the output of the norm {name} by more than its parameters")


def _refused(one: Chosen, why: str) -> MergeRefused:
    return MergeRefused(f"{one.name} cannot be merged: {why}. Instead, {_INSTEAD}")
