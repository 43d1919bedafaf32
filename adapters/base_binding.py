"""Which base the adapters of a state folder are made for, in `<state>/base.json`.

On other weights of the same shapes they would answer, wrongly and without a word. Knows digests of a base's parts;
does not know how they are made.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from .errors import StateUnusable
from .staging import fsync_folder

logger = logging.getLogger(__name__)

FILE = "base.json"
_PARTS = {"config": "its configuration", "tensors": "the names and shapes of its tensors", "numbers": "its numbers"}


class BaseIdentity(msgspec.Struct):
    """model: what it was called. fingerprint: part of the checkpoint to digest."""

    model: str
    fingerprint: dict[str, str]


def bind(root: Path, base: BaseIdentity, *, in_use: bool, allow_other: bool) -> None:
    """Note the base of a new state folder, and compare it with that of another. Raises StateUnusable, OSError.

    in_use: whether there are adapters; without any, the folder takes whatever base comes. allow_other: so do adapters.
    """
    if not base.fingerprint:
        return  # whoever made it has said why
    bound = read(root)
    if bound is not None and in_use and (differences := _differences(bound, base)):
        if not allow_other:
            raise StateUnusable(
                f"the adapters in this state folder were made for another base, {bound.model!r}: of {base.model!r} "
                f"{differences} differ. Serve that base, choose another --state-dir, or pass --allow-other-base if "
                "they are to be served on this one all the same"
            )
        logger.warning("The state folder's adapters were made for another base, of which %s differ", differences)
    if bound != base:
        _write(root, base)


def read(root: Path) -> BaseIdentity | None:
    """None where there is no note, or none that can be read, which is a warning."""
    try:
        return msgspec.json.decode((root / FILE).read_bytes(), type=BaseIdentity)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        logger.warning("Which base the adapters were made for cannot be read (%s); it is taken to be this one", error)
        return None


def _differences(bound: BaseIdentity, base: BaseIdentity) -> str:
    names: Mapping[str, str] = _PARTS
    parts = [
        names.get(part, part) for part, digest in base.fingerprint.items() if bound.fingerprint.get(part) != digest
    ]
    return " and ".join(parts)


def _write(root: Path, base: BaseIdentity) -> None:
    new = root / f".{FILE}"
    with new.open("wb") as file:
        file.write(msgspec.json.encode(base))
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, root / FILE)
    fsync_folder(root)
