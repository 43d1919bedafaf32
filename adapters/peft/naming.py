"""The names that an adapter has for the base's modules, where those are not the base's own.

One decoder has several: `model.layers` as a text model, `model.language_model.layers` inside a multimodal class,
`language_model.model.layers` there before transformers 4.52. An adapter is compiled under its own names, in which its
configuration is written too, and its sites get the base's in the end. Knows no torch.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from ..errors import InvalidAdapter
from ..sites import SiteKind, SiteTable

# What a decoder's layers lie in, and what its head is called, in transformers' multimodal classes and text models.
_STEMS = (
    "model",
    "model.language_model",
    "language_model.model",
    "language_model",
    "model.text_model",
    "text_model.model",
    "text_model",
    "model.llm",
    "llm.model",
    "thinker.model",
    "model.model",
    "model.language_model.model",
)
_HEADS = ("lm_head", "language_model.lm_head", "text_model.lm_head", "llm.lm_head", "thinker.lm_head", "model.lm_head")
_MIXTURE = re.compile(r"\.\d+\.(?P<mixture>[^.]+)\.(?:experts\.\d+\.[^.]+|gate)\.lora_")
_STEM = re.compile(r"(.+?)\.[^.]+\.\d+\.")  # of `<stem>.<list>.<layer>.<module>`


@dataclass(frozen=True)
class Naming:
    """Names of the base's modules and the adapter's for them. parts: of the base, to the adapter's, longest first."""

    parts: Mapping[str, str]

    def theirs(self, name: str) -> str:
        """Return the adapter's name of a module of the base."""
        for own, other in self.parts.items():
            if name == own or name.startswith(f"{own}."):
                return other + name[len(own) :]
        return name

    def renamed(self, table: SiteTable) -> SiteTable:
        """Return the table under the adapter's names."""
        sites = {self.theirs(name): replace(site, name=self.theirs(name)) for name, site in table.sites.items()}
        special = (table.head, table.tied_head, table.embedding)
        head, tied, embedding = (None if name is None else self.theirs(name) for name in special)
        sets = (table.other_modules, table.irregular, table.matrices, table.uncalled, table.read)
        others, irregular, matrices, uncalled, read = (frozenset(map(self.theirs, names)) for names in sets)
        return replace(
            table,
            sites=sites,
            head=head,
            tied_head=tied,
            other_modules=others,
            irregular=irregular,
            matrices=matrices,
            embedding=embedding,
            uncalled=uncalled,
            read=read,
        )


def naming_of(names: Iterable[str], table: SiteTable) -> Naming | None:
    """Return how an adapter names the base's modules; None if it uses the base's own names, or none that are known.

    names: of the checkpoint's tensors. Raises InvalidAdapter if they are of two forms, neither of which is the base's.
    """
    own = _stem(table)
    if own is None:
        return None
    names, modules = tuple(names), {*table.sites, *table.other_modules}
    parts: dict[str, str] = {}
    if not any(_fits(name, own, own, modules) for name in names):
        found = [stem for stem in _STEMS if any(_fits(name, stem, own, modules) for name in names)]
        if len(found) > 1:
            raise InvalidAdapter(f"its tensors name one decoder in two ways: {' and '.join(found)}", param="files")
        parts |= {own: found[0]} if found else {}
    if (head := table.head) is not None and (other := _head_in(names, head, modules)) is not None:
        parts[head] = other
    for layer, (mixture, other) in _mixtures(names, table).items():
        parts[f"{layer}.{mixture}"] = f"{Naming(parts).theirs(layer)}.{other}"
    return Naming(dict(sorted(parts.items(), key=lambda part: -len(part[0])))) if parts else None


def _head_in(names: Iterable[str], own: str, modules: Container[str]) -> str | None:
    """Return what the names call the head, where that is neither the base's own name nor another of its modules."""
    known = (own, *(head for head in _HEADS if head not in modules))
    first = (next((head for head in known if name.startswith(f"{head}.")), own) for name in names)
    return next((head for head in first if head != own), None)


def _mixtures(names: Iterable[str], table: SiteTable) -> dict[str, tuple[str, str]]:
    """Return layer to the names of its mixture of experts, the base's and the adapter's, where they are two.

    Mixtral's was `block_sparse_moe` before transformers 5.
    """
    found = {match["mixture"] for name in names if (match := _MIXTURE.search(name))}
    own = [site.name.rsplit(".", 2) for site in table.sites.values() if site.kind is SiteKind.EXPERTS]
    modules = (*table.sites, *table.other_modules)
    unknown = [mixture for mixture in found if not any(f".{mixture}." in f"{name}." for name in modules)]
    return {layer: (mixture, unknown[0]) for layer, mixture, _ in own} if len(unknown) == 1 else {}


def _stem(table: SiteTable) -> str | None:
    """Return what the base's layers lie in."""
    stems = Counter(match[1] for name in table.sites if (match := _STEM.match(name)))
    return max(stems, key=lambda stem: stems[stem]) if stems else None


def _fits(name: str, stem: str, own: str, modules: set[str]) -> bool:
    """Return whether a tensor's name begins with `stem`, and goes on as one of a module below the base's own stem."""
    if not name.startswith(f"{stem}."):
        return False
    parts = (own + name[len(stem) :]).split(".")
    depth = own.count(".") + 2
    return any(".".join(parts[:end]) in modules for end in range(len(parts) - 1, depth - 1, -1))
