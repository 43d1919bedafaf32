"""The types of sources, and the one way to fetch from any of them: what is allowed, how many at once, how long."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from peftserve.adapters.staging import StagedUpload

from ..http.errors import bad_request
from .buckets import fetch_bucket
from .hub import fetch_hub
from .local import fetch_folder
from .place import Place, SourceFailed, SourceSettings, origin_of
from .web import fetch_http

logger = logging.getLogger(__name__)

MAX_FETCHES = 8  # at once; others wait for one of them

Fetch = Callable[[Place, StagedUpload, SourceSettings], Awaitable[str | None]]
"""Write an adapter's files into a staged upload and return what was fetched: a commit, a tag, or None.

Raises ApiError, AdapterError.
"""

FETCHERS: Mapping[str, Fetch] = {
    "path": fetch_folder,
    "hub": fetch_hub,
    "s3": fetch_bucket,
    "gs": fetch_bucket,
    "http": fetch_http,
}


class Sources:
    """The sources of one server."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self._places = asyncio.Semaphore(MAX_FETCHES)

    def allows(self, kind: str) -> bool:
        """Return whether requests may name places of a type."""
        return bool(self.settings.folders) if kind == "path" else kind in self.settings.types

    async def fetch(self, place: Place, staged: StagedUpload, settings: SourceSettings | None = None) -> dict[str, Any]:
        """Fetch an adapter's files into `staged`, and return their origin. Cancelled, it stops at once.

        settings: of a place that the operator names, which is allowed what its own settings say.
        Raises ApiError (SourceFailed above all), AdapterError.
        """
        if settings is None and place.type != "path" and not self.allows(place.type):
            raise bad_request(
                f"The source type {place.type!r} is not enabled on this server (--allow-adapter-source); upload the "
                "files as multipart/form-data.",
                "source.type",
            )
        chosen = settings or self.settings
        started = time.monotonic()
        async with self._places:
            try:
                async with asyncio.timeout(chosen.timeout or None):
                    resolved = await FETCHERS[place.type](place, staged, chosen)
            except TimeoutError:
                raise SourceFailed(f"The source took longer than {chosen.timeout:g} s.") from None
        origin = origin_of(place, resolved)
        if place.type != "path":
            seconds = time.monotonic() - started
            logger.info("Fetched %s: %.1f MB in %.1f s", origin["uri"], staged.num_bytes / 1e6, seconds)
        return origin
