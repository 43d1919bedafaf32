"""Adapters from object stores: `s3://bucket/folder`, `gs://bucket/folder`.

obstore reads credentials, regions and endpoints from the environment (`AWS_…`, `GOOGLE_…`), and tries again by itself.
What its errors say goes to nobody: they quote the store's answers.
"""

import logging
import os
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import GCSStore, S3Store

from peftserve.adapters.files import WEIGHTS
from peftserve.adapters.staging import StagedUpload

from .folder import receive_folder
from .place import (
    Place,
    SourceFailed,
    SourceMissing,
    SourceSettings,
    beside,
    check_path,
    refuse_revision,
    without_scheme,
)

logger = logging.getLogger(__name__)

PIECE = 1 << 20  # least bytes of a piece, but the last
RETRY_SECONDS = 20
_DAY = 86400
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_STORES: Mapping[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "s3": (S3Store, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")),
    "gs": (GCSStore, ("GOOGLE_BASE_URL",)),
}
"""Type to its store, and the variables that may name another endpoint."""


async def fetch_bucket(place: Place, staged: StagedUpload, settings: SourceSettings) -> str | None:
    """Fetch an adapter. Returns the tag of its weights. Raises SourceFailed, AdapterError."""
    refuse_revision(place)
    bucket, _, folder = without_scheme(place).partition("/")
    folder = check_path(folder)
    if not _BUCKET.fullmatch(bucket):
        raise SourceFailed(f"A source of type {place.type!r} is {place.type}://bucket/folder.")
    store = _open(place.type, bucket, settings.timeout)
    tags: dict[str, str | None] = {}

    async def read(relative: str) -> AsyncGenerator[bytes]:
        path = beside(folder, relative)
        with _translated(bucket, path):
            result = await obstore.get_async(store, path)
        tags[relative] = result.meta["e_tag"]
        pieces = aiter(result.stream(min_chunk_size=PIECE))
        while True:
            with _translated(bucket, path):
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield bytes(piece)

    await receive_folder(read, staged)
    return tags[WEIGHTS]


def _open(kind: str, bucket: str, timeout: float) -> Any:
    """Open a store. Raises SourceFailed where the environment does not make one."""
    make, endpoints = _STORES[kind]
    endpoint = next((os.environ[name] for name in endpoints if os.environ.get(name)), "")
    client = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=timeout or _DAY)}
    backoff = {"init_backoff": timedelta(seconds=0.25), "max_backoff": timedelta(seconds=4), "base": 2}
    retry = {"max_retries": 3, "retry_timeout": timedelta(seconds=RETRY_SECONDS), "backoff": backoff}
    with _translated(bucket, ""):
        return make(
            bucket,
            client_options={**client, **({"allow_http": True} if endpoint.startswith("http://") else {})},
            retry_config=retry,
        )


@contextmanager
def _translated(bucket: str, path: str) -> Iterator[None]:
    """Turn the library's errors into ours."""
    name = path.rpartition("/")[2]
    try:
        yield
    except FileNotFoundError as error:
        what = f"There is no bucket {bucket}" if "NoSuchBucket" in str(error) else f"The source holds no {name}"
        raise SourceMissing(f"{what}.") from None
    except (PermissionError, PermissionDeniedError, UnauthenticatedError):
        raise SourceFailed(f"The store does not let this server read {name} of the bucket {bucket}.") from None
    except (BaseError, OSError, ValueError) as error:
        code = _CODE.search(str(error))
        why = code[1] if code else type(error).__name__
        logger.warning("The bucket %s cannot be read: %s", bucket, why)
        raise SourceFailed(f"The bucket {bucket} cannot be read, or its store not be reached ({why}).") from None
