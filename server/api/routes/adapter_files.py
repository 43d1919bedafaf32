"""/v1/adapters/{name}/files: an adapter's files, byte for byte as they were uploaded."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, BinaryIO, Literal

import msgspec
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from peftserve.adapters.errors import AdapterDamaged, AdapterNotFound
from peftserve.adapters.files import stored_names
from peftserve.adapters.names import parse_reference
from peftserve.adapters.registry_reader import AdapterRecord

from ..http.errors import ApiError
from ..openai.answers import json_response
from ..services import Services, ServicesOf
from .adapters import Name
from .documentation import BINARY, Operation

router = APIRouter(tags=["Adapters"])

_PIECE = 1 << 18
_LISTED = 20  # names in a message


class AdapterFile(msgspec.Struct):
    """One file of an adapter."""

    name: Annotated[str, Meta(description="As it was uploaded; an expert's file is in a folder of the expert's name.")]
    size: Annotated[int, Meta(description="Bytes.")]


class AdapterFiles(msgspec.Struct, kw_only=True):
    """The files of one version of an adapter."""

    object: Literal["list"] = "list"
    id: Annotated[str, Meta(description="`name@version`: the version that they are of.")]
    digest: Annotated[
        str, Meta(description="SHA-256 over the lines `<name> <SHA-256>` of the files, in the order of this list.")
    ]
    data: list[AdapterFile]


EXAMPLE = AdapterFiles(
    id="sql@2",
    digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    data=[AdapterFile("adapter_config.json", 784), AdapterFile("adapter_model.safetensors", 147_912)],
)


@router.get("/v1/adapters/{name:named}/files")
@Operation("List an adapter's files", EXAMPLE, errors=(404,))
async def list_files(services: ServicesOf, name: Name) -> Response:
    """List the files of an adapter's newest version, or of the version that is named."""
    record = _record(services, name)
    files = await asyncio.to_thread(_listed, services.owned.store.path(record.digest), record)
    return json_response(AdapterFiles(id=str(record.ref), digest=record.digest, data=files))


@router.get("/v1/adapters/{name:named}/files/{file:path}")
@Operation(
    "Get one of an adapter's files",
    BINARY,
    errors=(404,),
    headers={"ETag": "Changes with the adapter's content, and never otherwise."},
)
async def get_file(
    request: Request,
    services: ServicesOf,
    name: Name,
    file: Annotated[str, Path(description="A name of the list.", examples=["adapter_config.json"])],
) -> Response:
    """Send a file as it was uploaded. What is being sent stays whole when the adapter is deleted meanwhile."""
    record = _record(services, name)
    headers = {"etag": _tag(record, file)}
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    opened = await asyncio.to_thread(_opened, services.owned.store.path(record.digest), record, file)
    return SentFile(opened, file, headers)


class SentFile(StreamingResponse):
    """A file that is read in pieces while it is sent, and closed after, however that ends.

    An open file outlives its deletion, so that nothing need hold the adapter meanwhile.
    """

    def __init__(self, file: BinaryIO, name: str, headers: dict[str, str]) -> None:
        self._file = file
        kind = "application/json" if name.endswith(".json") else "application/octet-stream"
        size = os.fstat(file.fileno()).st_size
        super().__init__(self._pieces(), headers={**headers, "content-length": str(size)}, media_type=kind)

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(self._file.read, _PIECE):
            yield piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


def _record(services: Services, name: str) -> AdapterRecord:
    reference = parse_reference(name)
    if reference is None:
        raise AdapterNotFound(f"there is no adapter {name[:140]!r}", param="name")
    return services.adapters.registry.get(reference.name, reference.version)


def _tag(record: AdapterRecord, file: str) -> str:
    """Return a tag of a file's content: a digest never means two contents."""
    return f'"{hashlib.sha256(f"{record.digest} {file}".encode("utf-8", "replace")).hexdigest()}"'


def _listed(folder: FilePath, record: AdapterRecord) -> list[AdapterFile]:
    try:
        files = [AdapterFile(name, (folder / name).stat().st_size) for name in stored_names(folder)]
    except OSError:
        files = []
    if not files:
        raise _gone(record)
    return files


def _opened(folder: FilePath, record: AdapterRecord, name: str) -> BinaryIO:
    """Open a file of an adapter. Raises ApiError 404 for any other name, AdapterDamaged if it is gone."""
    names = stored_names(folder)
    if names and name not in names:
        listed = ", ".join(names[:_LISTED])
        raise ApiError(404, f"{record.ref} has no such file; it has {listed}", param="file", code="file_not_found")
    try:
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC) if names else None
    except OSError:
        fd = None
    if fd is None:
        raise _gone(record)
    return open(fd, "rb", buffering=0)


def _gone(record: AdapterRecord) -> AdapterDamaged:
    return AdapterDamaged(f"the files of {record.ref} on the server's disk are gone; upload the same files again")
