"""What changes a state folder, as clients ask a server for it, and what a start has to mend. Knows no faults."""

import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import httpx

from peftserve.adapters.registry_file import NAME as REGISTRY
from peftserve.adapters.registry_file import files_of

from .states import delete_registry
from .subject import Files

LOST = "lost+found"
Served = dict[str, str]
"""What clients can know: name@version to digest, for each version that is there, and DEFAULTED to a name."""
DEFAULTED = "default"


class Change(NamedTuple):
    """What a client asks for, about a name. is_there: whether the name has a version before.

    ask: is given the name, and files to upload. after: what is served otherwise than before, of the name and the digest
    of the files; None for what is served no more.
    """

    ask: Callable[[httpx.AsyncClient, str, Files], Awaitable[httpx.Response]]
    after: Callable[[str, str], Mapping[str, str | None]]
    is_there: bool = True


async def upload(client: httpx.AsyncClient, name: str, files: Files) -> httpx.Response:
    return await client.post("/v1/adapters", data={"name": name}, files=files)


async def delete(client: httpx.AsyncClient, name: str, files: Files = ()) -> httpx.Response:
    return await client.delete(f"/v1/adapters/{name}")


async def set_default(client: httpx.AsyncClient, name: str, files: Files = ()) -> httpx.Response:
    return await client.put("/v1/default-adapter", json={"adapter": name})


AT_ONCE = "all changes at once"
CHANGES = {
    "upload": Change(upload, lambda name, digest: {f"{name}@1": digest}, is_there=False),
    "new version": Change(upload, lambda name, digest: {f"{name}@2": digest}),
    "deletion": Change(delete, lambda name, _: {f"{name}@1": None}),
    "default": Change(set_default, lambda name, _: {DEFAULTED: name}),
}
"""Each change that is crashed by itself, and with all of the others AT_ONCE."""


def blank(root: Path) -> None:
    """Make the registry zeros, as file systems do where they lost what was written last."""
    for file in files_of(root / REGISTRY):
        file.write_bytes(bytes(file.stat().st_size))


REPAIRS: dict[str, Callable[[Path], None]] = {
    "start without a registry": delete_registry,
    "start on a damaged registry": blank,
}
"""What has happened to the state folder before a start that mends it."""

OPERATIONS = (*CHANGES, AT_ONCE, *REPAIRS)


async def served(client: httpx.AsyncClient) -> Served:
    """Ask what is served."""
    found = {DEFAULTED: (await client.get("/v1/default-adapter")).json()["adapter"]}
    for card in (await client.get("/v1/adapters")).json()["data"]:
        for one in (await client.get(f"/v1/adapters/{card['name']}/versions")).json()["data"]:
            found[f"{one['name']}@{one['version']}"] = one["digest"]
    return found


def take_found(root: Path) -> None:
    """Remove a damaged registry from where it was set aside. Raises AssertionError where it, or more, is not there."""
    found = [path for path in (root / LOST).rglob("*") if path.is_file()]
    assert REGISTRY in {path.name for path in found}, "the damaged registry has gone"
    for path in found:
        assert path.name.startswith(REGISTRY), f"set aside, and not damaged: {path}"
    shutil.rmtree(root / LOST)
