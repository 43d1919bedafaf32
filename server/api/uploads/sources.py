"""Adapters that the server fetches itself: folders of this machine, where the operator allows them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from peftserve.adapters.staging import StagedUpload

from ..http.errors import ApiError, bad_request
from ..services import Services


async def fetch(services: Services, kind: str, uri: str, staged: StagedUpload) -> None:
    """Copy an adapter's files into `staged`. Raises ApiError, AdapterError."""
    if kind != "path":
        enabled = kind in services.config.allow_adapter_sources
        what = "is not available yet" if enabled else "is not enabled on this server"
        raise bad_request(f"The source type {kind!r} {what}; upload the files as multipart/form-data.", "source.type")
    folder = allowed_folder(services.config.allow_adapter_paths, uri)
    await asyncio.to_thread(staged.copy_folder, folder, inside=services.config.allow_adapter_paths)


def allowed_folder(roots: Sequence[Path], uri: str) -> Path:
    """Return the folder, links resolved.

    The error is the same for a folder that is missing and for one outside of `roots`.
    """
    if not roots:
        raise ApiError(
            400,
            "Adapters from folders of the server are not enabled (--allow-adapter-path); upload the files as "
            "multipart/form-data to /v1/adapters.",
            param="source.uri",
        )
    try:
        folder = Path(uri).resolve()
    except (ValueError, OSError, RuntimeError):
        raise _not_allowed() from None
    if not any(folder.is_relative_to(root.resolve()) for root in roots):
        raise _not_allowed()
    return folder


def _not_allowed() -> ApiError:
    return bad_request("The folder is not below one that the server allows.", "source.uri")
