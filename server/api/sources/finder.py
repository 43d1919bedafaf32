"""Adapters that are looked for when a request names one that is not registered: in places with the name in them.

However many requests wait for a name, it is looked for once. What was not found, or could not be had, is not asked for
again for some seconds, so that nobody can make the server ask a hub as often as he likes.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.library import AdapterLibrary
from peftserve.adapters.names import check_name
from peftserve.adapters.registry_reader import RegistryReader
from peftserve.adapters.store import AdapterStore

from ..http.errors import ApiError
from ..http.threads import entered
from .fetchers import Sources
from .place import Place, SourceFailed, SourceMissing, SourceSettings, parse_place

logger = logging.getLogger(__name__)

NAME = "{name}"
FORGET_SECONDS = 10.0  # until a name that was not found is looked for again
MAX_REMEMBERED = 4096  # names that were not found
MAX_SEARCHES = 64  # that run or wait
MAX_AT_ONCE = 4

Failure = ApiError | AdapterError


class AdapterFinder:
    """Looks for adapters in the operator's places, and registers what it finds.

    templates: addresses with `{name}`, asked in turn. limit: most bytes of an adapter.
    """

    def __init__(
        self,
        templates: Sequence[str],
        sources: Sources,
        registry: RegistryReader,
        store: AdapterStore,
        library: AdapterLibrary,
        limit: int,
    ) -> None:
        self._templates = templates
        self._sources = sources
        self._registry = registry
        self._store = store
        self._library = library
        self._limit = limit
        self._searches: dict[str, asyncio.Task[None]] = {}
        self._failed: OrderedDict[str, tuple[float, Failure | None]] = OrderedDict()  # None: found nowhere
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def find(self, name: str) -> bool:
        """Return whether an adapter was found and is registered now.

        Raises what kept one that there may be from being registered: AdapterError, SourceFailed; ApiError 429 where too
        many are looked for.
        """
        if name in self._failed:
            until, failure = self._failed[name]
            if time.monotonic() < until:
                return _fail(failure)
        search = self._searches.get(name)
        if search is None:
            if len(self._searches) >= MAX_SEARCHES:
                raise _too_many()
            search = self._searches[name] = asyncio.create_task(self._search(name))
            search.add_done_callback(lambda _: self._searches.pop(name, None))
        await asyncio.shield(search)  # others may wait for it too
        return _fail(self._failed[name][1]) if name in self._failed else True

    async def close(self) -> None:
        """End all searches."""
        searches = list(self._searches.values())
        for search in searches:
            search.cancel()
        await asyncio.gather(*searches, return_exceptions=True)

    async def _search(self, name: str) -> None:
        """Look for a name, and remember if it was not found. Another tenant's is there, though not for all."""
        self._failed.pop(name, None)
        if self._registry.find(name) is not None:
            return
        try:
            async with self._places:
                failure, found = None, await self._ask_all(name)
        except (ApiError, AdapterError) as error:
            failure, found = error, False
            logger.warning("The adapter %s cannot be had from its source: %s", name, _message(error))
        except Exception:
            failure, found = SourceFailed("The source cannot be used; the server's log says why."), False
            logger.exception("The search for the adapter %s has failed", name)
        if not found:
            self._failed[name] = time.monotonic() + FORGET_SECONDS, failure
            while len(self._failed) > MAX_REMEMBERED:
                self._failed.popitem(last=False)

    async def _ask_all(self, name: str) -> bool:
        """Ask each place until one has it. One that cannot be asked is passed over, and told of if none has it."""
        check_name(name)
        unasked: SourceFailed | None = None
        for template in self._templates:
            try:
                await self._take(template, name)
                return True
            except SourceMissing:
                continue
            except SourceFailed as error:
                unasked = error
        if unasked is not None:
            raise unasked
        return False

    async def _take(self, template: str, name: str) -> None:
        """Fetch an adapter and register it, unless a version has been registered meanwhile."""
        place = parse_place(template.replace(NAME, name), hub_ids=False)
        settings = _settings_of(template, place, self._sources.settings)
        if place.type == "path" and not await asyncio.to_thread(Path(place.uri).is_dir):
            raise SourceMissing("There is no such folder.")
        async with entered(self._store.stage, self._limit) as staged:
            origin = await self._sources.fetch(place, staged, settings)
            if self._registry.find(name) is None:
                await self._library.add(staged, name, origin=origin)


def _settings_of(template: str, place: Place, settings: SourceSettings) -> SourceSettings:
    """Return settings that allow this place: who starts the server has named it."""
    root = Path(f"{template.partition(NAME)[0]}x").parent
    return replace(settings, types=frozenset({place.type}), hosts=("*",), allow_private=True, folders=(root,))


def _fail(failure: Failure | None) -> bool:
    """Return that nothing was found, or raise why."""
    if failure is not None:
        raise failure.with_traceback(None)
    return False


def _message(error: Failure) -> str:
    return error.body.message if isinstance(error, ApiError) else error.message


def _too_many() -> ApiError:
    message = "Too many adapters that are not registered are being looked for; try again soon."
    return ApiError(429, message, param="model", code="too_many_searches", headers={"Retry-After": "1"})
