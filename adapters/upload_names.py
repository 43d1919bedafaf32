"""What becomes of the files that people send with an adapter: a whole folder, as a trainer has saved it.

Weights, the configuration and what changes answers are kept; everything else of a folder is skipped, by its name.
Knows names only.
"""

import hashlib
import re
from collections.abc import Collection, Iterable

from .errors import InvalidAdapter
from .files import COMPANIONS, CONFIG, FILES, WEIGHTS

INDEX = f"{WEIGHTS}.index.json"
DEEPEST = 16  # parts of a path

ADAPTERHUB_WEIGHTS = "adapter.safetensors"

_RENAMED = {ADAPTERHUB_WEIGHTS: WEIGHTS}
_SHARD = re.compile(r"adapter_model[-_.]?(\d{1,5})[-_]of[-_](\d{1,5})\.safetensors")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHECKPOINT = re.compile(r"checkpoint-[0-9]+")  # what transformers' Trainer names the folders that it saves meanwhile
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_PICKLED_WEIGHTS = re.compile(r"(adapter_model|pytorch_adapter|pytorch_model)(-\d+-of-\d+)?\.(bin|pt|pth|pkl|ckpt)")


def place_of(sent: str) -> str | None:
    """Return the name under which a file is kept until the upload is settled, or None for one that is skipped.

    sent: the name that the client gave, maybe with folders before it, with either slash. Raises InvalidAdapter for a
    name that leaves the upload's folder.
    """
    *folders, name = [part for part in sent.replace("\\", "/").split("/") if part != "."]
    if sent.startswith(("/", "\\")) or ".." in folders or not name or name == ".." or "\0" in sent:
        raise InvalidAdapter(f"{sent[:128]!r} is not part of an adapter; send {CONFIG} and {WEIGHTS}", param="files")
    name = _RENAMED.get(name, name)
    if len(folders) >= DEEPEST or any(map(_CHECKPOINT.fullmatch, folders[1:])) or not is_kept(name):
        return None
    return "/".join([*map(_folder, folders), name])


def is_surpassed(place: str, kept: Collection[str]) -> bool:
    """Return whether a file is of a checkpoint beside an adapter that is there. kept: the files that are."""
    return CONFIG in kept and _CHECKPOINT.fullmatch(place.partition("/")[0]) is not None


def _folder(sent: str) -> str:
    """Return the name under which a folder is kept: its own, if an expert's can be."""
    return sent if _PART.fullmatch(sent) else f"sent-{hashlib.sha256(sent.encode()).hexdigest()[:16]}"


def is_kept(name: str) -> bool:
    """Return whether a file of this name, without folders, has a part in what an adapter is or says."""
    return name in FILES or name in COMPANIONS or name == INDEX or is_shard(name)


def is_shard(name: str) -> bool:
    """Return whether this is one of the files that weights were cut into."""
    return _SHARD.fullmatch(name) is not None


def is_part(place: str) -> bool:
    """Return whether a file is a part of weights that become one file."""
    name = place.rpartition("/")[2]
    return name == INDEX or is_shard(name)


def is_whole(shards: Iterable[str]) -> bool:
    """Return whether the names of such files say that none is missing: each number from 1 or 0 on is there once."""
    found = [match for name in shards if (match := _SHARD.fullmatch(name))]
    counts, numbers = {int(match[2]) for match in found}, sorted(int(match[1]) for match in found)
    return counts == {len(found)} and numbers in ([*range(1, len(found) + 1)], [*range(len(found))])


def why_nothing(skipped: Iterable[str]) -> str | None:
    """Return what is to be said of an upload that lacks files, by what was skipped of it; None for nothing."""
    for sent in skipped:
        name = sent.replace("\\", "/").rpartition("/")[2]
        if _PICKLED_WEIGHTS.fullmatch(name):
            return (
                f"{sent!r} is a pickle file, which can run code when it is read; save the adapter with "
                f"save_pretrained(..., safe_serialization=True) and send {WEIGHTS}"
            )
        if name.lower().endswith(_ARCHIVES):
            return (
                f"{sent!r} is an archive, which is not unpacked here; send the files in it: "
                f"curl -F name=NAME -F files=@{CONFIG} -F files=@{WEIGHTS} …, or peftserve adapters add NAME FOLDER"
            )
    return None
