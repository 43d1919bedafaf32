"""Adapters that are to stay on the device: the engine is told of them whenever they are others than before.

Which they are is read from the registry: see `SettingsReader.pinned`. Knows no HTTP.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.events import Event
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.stored_settings import SettingsReader

from ..wire.messages import EngineStats, ModelInfo
from .engine.interface import EngineDead, RemoteEngine

logger = logging.getLogger(__name__)

LOADING = 0.2  # seconds between looks while the model loads
AGAIN = 5.0  # behind a look that failed


class Pins:
    """The pins of one engine. settings: on a connection that may take its time."""

    def __init__(self, engine: RemoteEngine, registry: AdapterRegistry, settings: SettingsReader) -> None:
        self._engine = engine
        self._registry = registry
        self._settings = settings
        self._kept: Sequence[str] | None = ()  # by the engine; None: what it made of the last ones is not known
        self._told_engine: ModelInfo | None = None  # what the engine that was told has said of its model
        self._one_at_a_time = asyncio.Lock()
        self._awake = asyncio.Event()

    async def run(self) -> None:
        """Tell the engine of the pins of now, and of each change, until this is cancelled."""
        while self._engine.info is None:
            await asyncio.sleep(LOADING)
        said = ""
        while True:
            pause, fault = None, ""
            try:
                await self.sync()
            except (AdapterError, EngineDead) as error:
                pause, fault = AGAIN, str(error)
            except Exception:
                pause = AGAIN
                logger.exception("It could not be seen what is pinned")
            if fault and fault != said:
                logger.warning("Not all pinned adapters stay on the device: %s", fault)
            said = fault
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), pause)
            self._awake.clear()

    def wake(self) -> None:
        """Look soon: settings have changed."""
        self._awake.set()

    def heed(self, event: Event) -> None:
        """Look soon, if what has happened may change what is pinned."""
        if event.event not in ("adapter.loaded", "adapter.unloaded"):
            self._awake.set()

    def observe(self, stats: EngineStats) -> None:
        """Look soon, if another engine has taken the place of the one that was told."""
        if self._engine.info is not self._told_engine:
            self._awake.set()

    async def sync(self) -> None:
        """Tell the engine what is pinned now. Raises AdapterError, EngineDead."""
        async with self._one_at_a_time:
            wanted = await asyncio.to_thread(self._settings.pinned)
            if list(wanted) != self._kept_now():
                await self._tell(wanted)

    async def try_out(self, name: str) -> None:
        """Pin the newest version of one more name. Raises AdapterNotFound, EngineDead.

        Raises AdapterError where the engine cannot keep it, and then the pins are what they were.
        """
        digest = self._registry.get(name).digest
        async with self._one_at_a_time:
            before = await asyncio.to_thread(self._settings.pinned)
            if digest in (self._kept_now() or ()):
                return
            try:
                await self._tell(before if digest in before else [*before, digest])
            except AdapterError:
                self._awake.set()  # to tell what is pinned again
                raise

    def _kept_now(self) -> list[str] | None:
        """Return the pins of the engine that runs now; None where they are not known."""
        if self._engine.info is not self._told_engine:  # it begins with none
            self._kept, self._told_engine = (), self._engine.info
        return None if self._kept is None else list(self._kept)

    async def _tell(self, wanted: Sequence[str]) -> None:
        """Tell the engine of pins, and note them once it keeps them. Raises AdapterError, EngineDead."""
        self._kept = None
        await self._engine.pin_adapters(wanted)
        self._kept = wanted
