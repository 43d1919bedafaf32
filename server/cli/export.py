"""Get an adapter's files back from a server: into a new folder, all of them or none."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.files import check_file_name, digest_of

from ..checkpoint.errors import MergeRefused
from ..checkpoint.publication import published
from .client import Server
from .errors import FAILED, CommandError
from .progress import Counter, progress


def path_of(name: str) -> str:
    """Return the path of an adapter's routes."""
    return f"/v1/adapters/{quote(name, safe='@')}"


def export(server: Server, name: str, out: Path) -> str:
    """Write an adapter's files into a new folder. Returns which version it is. Raises CommandError."""
    listed = server.call("GET", f"{path_of(name)}/files")
    files = {file["name"]: file["size"] for file in listed["data"]}
    try:
        for file in files:
            check_file_name(file)  # so that no server writes outside of the folder
        with published(out) as folder:
            _check(listed, _write(server, listed["id"], files, folder))
    except MergeRefused as error:
        raise CommandError(str(error)) from None
    except AdapterError as error:
        raise CommandError(f"{server.url} sent a file that is none of an adapter: {error.message}", FAILED) from None
    except OSError as error:
        raise CommandError(f"{error.strerror or error}: {error.filename or out}", FAILED) from None
    return str(listed["id"])


def _write(server: Server, version: str, files: Mapping[str, int], folder: Path) -> dict[str, str]:
    """Write the files. Returns the SHA-256 of each."""
    hashes = {}
    total = sum(files.values())
    with progress(version, total, is_bytes=True) as show:
        counter = Counter(show, total)
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            digest = hashlib.sha256()
            with server.download(f"{path_of(version)}/files/{quote(name)}") as pieces, (folder / name).open("wb") as to:
                for piece in pieces:
                    digest.update(piece)
                    counter.advance(to.write(piece))
            hashes[name] = digest.hexdigest()
    return hashes


def _check(listed: Mapping[str, Any], hashes: Mapping[str, str]) -> None:
    """Raise CommandError if what has come is not what was uploaded."""
    if digest_of(hashes) != listed["digest"]:
        raise CommandError(f"the files of {listed['id']} are not those that were uploaded; nothing was written", FAILED)
