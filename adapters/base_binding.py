"""Which base the adapters of a state folder are made for, in `<state>/base.json`.

On other weights of the same shapes adapters would answer wrongly, and nothing would show it. Knows digests of a base's
parts; does not know how they are made.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from .errors import StateUnusable
from .folders import fsync_folder

logger = logging.getLogger(__name__)

FILE = "base.json"
_PARTS = {"config": "its configuration", "tensors": "the names and shapes of its tensors", "numbers": "its numbers"}


class BaseIdentity(msgspec.Struct):
    """The base that a state folder belongs to.

    model: its name at the time. fingerprint: part of the checkpoint to digest; empty where there is none.
    """

    model: str
    fingerprint: dict[str, str]


def bind(root: Path, base: BaseIdentity, *, in_use: bool, allow_other: bool) -> None:
    """Note the base of a new state folder, or compare it with the one that is noted.

    in_use: whether there are adapters; a folder without any takes whatever base comes.
    allow_other: serve adapters of another base all the same, with a warning.
    Raises StateUnusable for another base, OSError.
    """
    if not base.fingerprint:
        return  # its files could not be read, and a warning has said why
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
    """Return the noted base; None where there is no note, or, with a warning, none that can be read."""
    try:
        return msgspec.json.decode((root / FILE).read_bytes(), type=BaseIdentity)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        logger.warning("Which base the adapters were made for cannot be read (%s); it is taken to be this one", error)
        return None


def _differences(bound: BaseIdentity, base: BaseIdentity) -> str:
    """Name the parts in which two bases differ, as the subject of a sentence; empty if they are the same."""
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
