"""Parts that wrappers leave in names of tensors: `_orig_mod.` of torch.compile, `module.` of data-parallel training.

They are left out where every tensor of a file has them. One that only some have says that the file is a mix of two.
"""

from collections.abc import Iterable, Mapping

from ..errors import InvalidAdapter
from ..sites import SiteTable
from .keys import PREFIX

_COMPILED = "_orig_mod."
_PARALLEL = "module."


def unwrapped(keys: Iterable[str], table: SiteTable) -> dict[str, str]:
    """Return a tensor's name without wrappers, to its key in the file. Raises InvalidAdapter if two are one then."""
    found = {key: key for key in keys}
    if found and all(_COMPILED in name for name in found.values()):
        found = {key: name.replace(_COMPILED, "") for key, name in found.items()}
    if not any(name.startswith(_PARALLEL) for name in (*table.sites, *table.other_modules)):
        found = _without_parallel(found)
    stored = {name: key for key, name in found.items()}
    if len(stored) < len(found):
        raise InvalidAdapter("tensors have the same name twice, with and without _orig_mod. or module.", param="files")
    return stored


def _without_parallel(found: Mapping[str, str]) -> dict[str, str]:
    """Drop `module.` before or behind PEFT's prefix, as often as it is there in all names."""
    result = dict(found)
    for before in ("", PREFIX):
        while result and all(name.startswith(before + _PARALLEL) for name in result.values()):
            result = {key: before + name[len(before + _PARALLEL) :] for key, name in result.items()}
    return result
