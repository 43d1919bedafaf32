"""Adapters from a hub in Hugging Face's form: `owner/name`, or `owner/name/folder` of a repository that has several.

The revision is resolved once, and all files are of the commit that it was then. They come straight into the staged
upload: nothing is left in a cache. `HF_ENDPOINT` names the hub, `HF_TOKEN` a token unless the operator gives a file.
"""

import logging
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import httpx

from peftserve.adapters.files import CONFIG
from peftserve.adapters.staging import StagedUpload

from ..http.threads import to_the_end
from .download import TIMEOUT, Download, Hop, tls_context
from .folder import receive_folder
from .place import PARAM, Place, SourceFailed, SourceMissing, SourceSettings, beside, check_path, without_scheme

logger = logging.getLogger(__name__)

API_SECONDS = 10.0  # for the one question of which commit a revision is


@dataclass(frozen=True)
class _Repository:
    """A folder of a repository. id: `owner/name`. token, endpoint: None for those of the library."""

    id: str
    folder: str
    revision: str | None
    token: str | None
    endpoint: str | None


async def fetch_hub(place: Place, staged: StagedUpload, settings: SourceSettings) -> str | None:
    """Fetch an adapter. Returns the commit. Raises SourceFailed, AdapterError."""
    repository = _parse(place, await to_the_end(_read_token, settings.hub_token_file))
    commit = await to_the_end(_commit, repository)
    route = _Route(await to_the_end(_headers, repository), httpx.URL(_url(repository, commit, "x")))
    async with httpx.AsyncClient(verify=await to_the_end(tls_context), timeout=TIMEOUT) as client:

        async def read(relative: str) -> AsyncGenerator[bytes]:
            url = httpx.URL(_url(repository, commit, beside(repository.folder, relative)))
            async with aclosing(Download(client, url, route).read()) as pieces:
                async for piece in pieces:
                    yield piece

        await receive_folder(read, staged)
    return commit


class _Route:
    """A route that follows the hub wherever it stores files, and shows the token to the hub alone."""

    def __init__(self, headers: dict[str, str], hub: httpx.URL) -> None:
        self._headers = headers
        self._hub = _origin(hub)

    async def __call__(self, url: httpx.URL, before: httpx.URL | None) -> Sequence[Hop]:
        return [Hop(url, self._headers if _origin(url) == self._hub else {})]


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _parse(place: Place, token: str | None) -> _Repository:
    """Read `owner/name[@revision][/folder]`. Raises SourceFailed."""
    parts = check_path(without_scheme(place)).split("/")
    if len(parts) < 2:
        raise SourceFailed("A source of type 'hub' is owner/name, or owner/name/folder.")
    owner, (name, at, revision) = parts[0], parts[1].partition("@")
    if at and place.revision not in (None, revision):
        raise SourceFailed("The address and the field 'revision' name different revisions.", "source.revision")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    folder = "/".join(parts[2:])
    return _Repository(f"{owner}/{name}", folder, revision or place.revision, token, endpoint and endpoint.rstrip("/"))


def _read_token(file: Path | None) -> str | None:
    """Read the token anew for each fetch, as it may have been replaced."""
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        logger.error("The file of --hub-token-file cannot be read")
        raise SourceFailed("The server cannot read its token for the hub; tell its operator.", PARAM) from None


def _commit(repository: _Repository) -> str:
    """Ask the hub which commit the revision is. Raises SourceFailed."""
    from huggingface_hub import HfApi  # late: a second of imports, for those who use it
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi(endpoint=repository.endpoint, token=repository.token)
    try:
        info = api.model_info(repository.id, revision=repository.revision, timeout=API_SECONDS)
    except GatedRepoError:
        raise SourceFailed(f"The repository {repository.id} is gated, and not open to this server.") from None
    except RepositoryNotFoundError:
        raise SourceMissing(f"There is no repository {repository.id}, or this server may not read it.") from None
    except RevisionNotFoundError:
        raise SourceMissing(
            f"The repository {repository.id} has no revision {repository.revision!r}.", "source.revision"
        ) from None
    except HFValidationError:
        raise SourceFailed(f"{repository.id!r} is not the name of a repository.") from None
    except OfflineModeIsEnabled:
        raise SourceFailed("This server does not ask the hub: HF_HUB_OFFLINE is set.") from None
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return _commit_of_files(repository)
        raise _refused(repository, error.response.status_code) from None
    except Exception as error:  # of the library's HTTP client, which is another one in another of its versions
        logger.warning("The hub cannot be reached: %s", type(error).__name__)
        raise SourceFailed("The hub cannot be reached.") from None
    if not isinstance(info.sha, str):
        raise SourceFailed("The hub does not say which commit the revision is.")
    return info.sha


def _commit_of_files(repository: _Repository) -> str:
    """Ask a hub that does not describe repositories, as some mirrors: each file comes with its commit."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError

    url = _url(repository, repository.revision or "main", beside(repository.folder, CONFIG))
    missing = SourceMissing(f"There is no repository {repository.id} with that revision and an {CONFIG}.")
    try:
        metadata = get_hf_file_metadata(url, token=repository.token, timeout=API_SECONDS)
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise missing if status == 404 else _refused(repository, status) from None
    except Exception as error:  # as above
        logger.warning("The hub cannot be reached: %s", type(error).__name__)
        raise SourceFailed("The hub cannot be reached.") from None
    if metadata.commit_hash is None:
        raise SourceFailed("The hub does not say which commit the revision is.")
    return metadata.commit_hash


def _refused(repository: _Repository, status: int) -> SourceFailed:
    if status in (401, 403):
        return SourceFailed(f"The hub does not let this server read {repository.id} (status {status}).")
    return SourceFailed(f"The hub answers with the status {status}.")


def _url(repository: _Repository, commit: str, path: str) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository.id, path, revision=commit, endpoint=repository.endpoint)


def _headers(repository: _Repository) -> dict[str, str]:
    """Return what shows the hub who asks, by the library's own rules unless the operator gives a token."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_DISABLE_IMPLICIT_TOKEN

    token = repository.token or (None if HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
    return {} if token is None else {"authorization": f"Bearer {token}"}
