"""Adapters from folders of this machine, below those that the operator allows."""

from collections.abc import Sequence
from pathlib import Path

from peftserve.adapters.staging import StagedUpload

from ..http.errors import ApiError, bad_request
from ..http.threads import to_the_end
from .place import PARAM, Place, SourceSettings


async def fetch_folder(place: Place, staged: StagedUpload, settings: SourceSettings) -> str | None:
    """Copy an adapter's files into `staged`. Raises ApiError, AdapterError."""
    folder = allowed_folder(settings.folders, place.uri)

    def copy() -> None:
        staged.copy_folder(folder, inside=settings.folders)

    await to_the_end(copy)
    return None


def allowed_folder(roots: Sequence[Path], uri: str) -> Path:
    """Return the folder, links resolved.

    The error is the same for a folder that is missing and for one outside of `roots`.
    """
    if not roots:
        raise ApiError(
            400,
            "Adapters from folders of the server are not enabled (--allow-adapter-path); upload the files as "
            "multipart/form-data to /v1/adapters.",
            param=PARAM,
        )
    try:
        folder = Path(uri).resolve()
    except (ValueError, OSError, RuntimeError):
        raise _not_allowed() from None
    if not any(folder.is_relative_to(root.resolve()) for root in roots):
        raise _not_allowed()
    return folder


def _not_allowed() -> ApiError:
    return bad_request("The folder is not below one that the server allows.", PARAM)
