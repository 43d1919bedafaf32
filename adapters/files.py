"""The files that make up an adapter.

An adapter has two files of its own, and two of each expert that it routes tokens between (`arrow_config`):

    adapter_config.json             adapter_model.safetensors
    <expert>/adapter_config.json    <expert>/adapter_model.safetensors

Beside its own two it may have COMPANIONS, which say what its words are and how it talks.

Knows names and places; of the contents, only which experts there are.
"""

import errno
import hashlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .errors import AdapterTooLarge, InvalidAdapter
from .strict_json import parse_object

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
MAX_CONFIG_BYTES = 1 << 20
MAX_EXPERTS = 256

_EXPERT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_file_name(name: str) -> None:
    """Raise InvalidAdapter for a name that no file of an adapter has."""
    expert, slash, own_name = name.rpartition("/")
    known = FILES if slash else (*FILES, *COMPANIONS)
    if own_name not in known or (slash and not _EXPERT.fullmatch(expert)):
        raise InvalidAdapter(f"{name[:128]!r} is not part of an adapter; send {CONFIG} and {WEIGHTS}", param="files")


def experts_among(names: Collection[str]) -> list[str]:
    """Return the names of the experts that files of these names belong to, sorted."""
    return sorted({name.rpartition("/")[0] for name in names} - {""})


def missing_file(names: Collection[str]) -> str | None:
    """Return the first name that these lack to be an adapter; None if they are complete."""
    wanted = [*FILES, *(f"{expert}/{name}" for expert in experts_among(names) for name in FILES)]
    return next((name for name in wanted if name not in names), None)


def digest_of(hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 over one line `<file name> <SHA-256 of the file in hexadecimal>\\n` for each file.

    The adapter's own two files come first, then those of its experts in the order of their names.
    hashes: file name to SHA-256.
    """
    names = sorted(hashes, key=_place)
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in names).encode()).hexdigest()


def stored_names(folder: Path) -> list[str]:
    """Return the names of the files of the adapter in a folder of the store, in the order of its digest.

    None are listed of a folder that is not there or not whole. Raises OSError.
    """
    found = os.walk(folder, onerror=_raise_unless_gone)
    names = [os.path.relpath(os.path.join(path, name), folder) for path, _, files in found for name in files]
    return [] if missing_file(names) is not None else sorted(names, key=_place)


def content_digest(folder: Path) -> str | None:
    """Compute the digest of the files in `folder`, reading all; None if they are not exactly those of an adapter.

    Raises OSError where they cannot be read, which says nothing of their content.
    """
    names = stored_names(folder)
    if not names:
        return None
    hashes = {}
    for name in names:
        try:
            fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOENT):
                return None  # a link, or deleted meanwhile
            raise
        with open(fd, "rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of(hashes)


def _place(name: str) -> tuple[bool, str]:
    """Return what files of an adapter are sorted by: its own, then those of its experts."""
    return "/" in name, name


def _raise_unless_gone(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        raise error


def read_raw_config(folder: Path) -> Mapping[str, Any]:
    """Read the configuration of the adapter in a folder. Raises AdapterTooLarge, InvalidAdapter, OSError."""
    with (folder / CONFIG).open("rb") as file:
        text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise AdapterTooLarge(f"{CONFIG} is over {MAX_CONFIG_BYTES} bytes", param="files")
    return parse_object(text, CONFIG)


def experts_of(folder: Path) -> list[str]:
    """Return the names of the experts between which the configuration in a folder routes; none for most adapters.

    Raises AdapterTooLarge, InvalidAdapter, OSError.
    """
    arrow = read_raw_config(folder).get("arrow_config")
    if not isinstance(arrow, dict):
        return []
    lists = [arrow.get("task_adapter_names") or [], arrow.get("gks_adapter_names") or []]
    names = [name for names in lists if isinstance(names, list) for name in names]
    for name in names:
        if not isinstance(name, str) or not _EXPERT.fullmatch(name):
            raise InvalidAdapter(
                f"arrow_config names an expert {repr(name)[:80]}; a name is 1 to 64 letters, digits, '.', '_' and '-'",
                param="arrow_config",
            )
    if len(names) > MAX_EXPERTS:
        raise AdapterTooLarge(f"arrow_config names over {MAX_EXPERTS} experts", param="arrow_config")
    return list(dict.fromkeys(names))


def expert_folder(folder: Path, expert: str) -> Path:
    """Return the folder of an expert.

    It is below the adapter's as in an upload, or beside it, where PEFT's `save_pretrained` puts it.
    """
    below = folder / expert
    return below if below.is_dir() else folder.parent / expert
