"""The modules of the base that a configuration targets, exactly as PEFT 0.21 finds them.

PEFT walks over all modules and tests each name; this module does, over the table of sites and the names beside it.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..errors import InvalidAdapter, UnsupportedAdapter
from ..sites import SiteKind, SiteTable
from .config import Targets
from .listing import listed
from .patterns import Deadline, Pattern, pattern_keys

_T = TypeVar("_T")

# PEFT takes the first number in a name as the layer's index.
_ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."
_NAMED_LAYER = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
# A method is never on a module that is saved whole, nor below one.
_SAVED = r"(^|.*\.){}($|\..*)"


_EMBEDDING_NAMES = ("embed_tokens", "lm_head")


class Matcher:
    """Decides whether an adapter targets a module, by its name. Expressions are compiled once, with one deadline."""

    def __init__(self, targets: Targets, deadline: Deadline) -> None:
        self._names = frozenset(targets.modules if isinstance(targets.modules, tuple) else ())
        self._pattern = _pattern(targets.modules, "target_modules", deadline)
        self._excluded = frozenset(targets.exclude if isinstance(targets.exclude, tuple) else ())
        self._exclude_pattern = _pattern(targets.exclude, "exclude_modules", deadline)
        self._saved = [Pattern(p, "modules_to_save", deadline, template=_SAVED) for p in targets.saved]
        self._layers = frozenset(targets.layers)
        patterns = targets.layers_pattern
        self._layer_patterns = [Pattern(p, "layers_pattern", deadline, template=_NAMED_LAYER) for p in patterns]
        if not patterns:
            self._layer_patterns = [Pattern(_ANY_LAYER, "layers_to_transform", deadline)]

    def __call__(self, name: str) -> bool:
        """Return whether the module is targeted. Raises InvalidAdapter when the time is up."""
        if self.excludes(name):
            return False
        if self._pattern is not None:
            return self._pattern.fullmatch(name)
        # A name in full stands for itself, whatever layers are chosen.
        return name in self._names or (_ends_with_any(name, self._names) and self._in_chosen_layer(name))

    def excludes(self, name: str) -> bool:
        """Return whether the module is left out, whatever else the configuration says."""
        if any(pattern.match(name) for pattern in self._saved):
            return True
        if self._exclude_pattern is not None:
            return self._exclude_pattern.fullmatch(name)
        return name in self._excluded or _ends_with_any(name, self._excluded)

    def _in_chosen_layer(self, name: str) -> bool:
        if not self._layers:
            return True
        for pattern in self._layer_patterns:
            if match := pattern.match(name):
                return int(match["idx"]) in self._layers
        return False


_MATRICES = frozenset({SiteKind.LINEAR, SiteKind.EMBEDDING, SiteKind.HEAD})


def targeted_sites(
    targets: Targets,
    table: SiteTable,
    deadline: Deadline,
    *,
    tie: bool = False,
    kinds: frozenset[SiteKind] = _MATRICES,
    without: frozenset[str] = frozenset(),
) -> list[str]:
    """Return the names of the targeted sites, in the table's order.

    kinds: that the method can be on. tie: an adapter on one of a tied pair of embedding and head is on both.
    without: modules that may be targeted and are no site, where the method changes nothing.
    Raises InvalidAdapter if there is none, or if a module is targeted that is no site; UnsupportedAdapter if that is a
    linear or an embedding all the same.
    """
    matches = Matcher(targets, deadline)
    if targets.all_linear:
        return _found([name for name in _all_linear(table) if not matches.excludes(name)], targets)
    unfit = {name for name, site in table.sites.items() if site.kind not in kinds}
    others = sorted(name for name in (table.other_modules | unfit) - without if name and matches(name))
    if irregular := (table.irregular if SiteKind.NORM in kinds else table.matrices).intersection(others):
        raise UnsupportedAdapter(
            f"target_modules takes in {listed(sorted(irregular))}, which this base does not run on every token, or on "
            "every token that it predicts from; an adapter there is not supported yet",
            param="target_modules",
        )
    if others:
        raise InvalidAdapter(
            f"target_modules takes in modules that are neither linear layers nor embeddings: {listed(others)}",
            param="target_modules",
        )
    pair = _tied_pair(targets, table, deadline) if tie else frozenset()
    found = [name for name in table.sites if name in pair or matches(name)]
    if not found and (unread := sorted(filter(matches, table.unread | without))):
        raise InvalidAdapter(
            f"target_modules takes in {listed(unread)} alone, which no text passes", param="target_modules"
        )
    return _found(found, targets)


def matches_any(targets: Targets, table: SiteTable, deadline: Deadline) -> bool:
    """Return whether a configuration targets any module of the base at all. Raises InvalidAdapter."""
    matches = Matcher(targets, deadline)
    return targets.all_linear or any(matches(name) for name in (*table.sites, *table.other_modules))


def values_at(
    patterns: Mapping[str, _T], default: _T, names: Iterable[str], field: str, deadline: Deadline
) -> dict[str, _T]:
    """Return, for each name, the value of the first pattern that matches its end, else the default."""
    keys = pattern_keys(patterns, field, deadline)
    found = {}
    for name in names:
        with deadline.running(field):
            found[name] = next((patterns[key] for key, p in keys if p.match(name)), default)
    return found


def _all_linear(table: SiteTable) -> list[str]:
    """Return the linear sites without the output head, which PEFT leaves out."""
    return [name for name, site in table.sites.items() if site.kind is SiteKind.LINEAR and name != table.head]


def _tied_pair(targets: Targets, table: SiteTable, deadline: Deadline) -> frozenset[str]:
    """Return embedding and head, if they are tied and the configuration has one of the two names that PEFT knows."""
    if table.tied_head is None or table.head is None:
        return frozenset()
    if isinstance(targets.modules, str):
        pattern = Pattern(targets.modules, "target_modules", deadline)
        named = any(pattern.fullmatch(name) for name in _EMBEDDING_NAMES)
    else:
        named = any(name.rpartition(".")[2] in _EMBEDDING_NAMES for name in targets.modules)
    return frozenset((table.tied_head, table.head)) if named else frozenset()


def _found(names: list[str], targets: Targets) -> list[str]:
    if not names:
        raise InvalidAdapter(f"target_modules {_shown(targets)} matches no module of this base", param="target_modules")
    return names


def _pattern(value: tuple[str, ...] | str, field: str, deadline: Deadline) -> Pattern | None:
    return Pattern(value, field, deadline) if isinstance(value, str) and value else None


def _ends_with_any(name: str, ends: frozenset[str]) -> bool:
    """Return whether one of `ends` is `name` without its first components."""
    position = name.find(".")
    while position >= 0:
        if name[position + 1 :] in ends:
            return True
        position = name.find(".", position + 1)
    return False


def _shown(targets: Targets) -> str:
    return repr(targets.modules[:200]) if isinstance(targets.modules, str) else listed(targets.modules)
