"""What goes on beside requests in the primary process: the timer, pins, and the events of adapters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from peftserve.adapters.events import EventLog
from peftserve.adapters.housekeeping import Housekeeper
from peftserve.adapters.keeping import Keeping
from peftserve.adapters.leases import Holders
from peftserve.adapters.library import AdapterLibrary
from peftserve.adapters.names import VersionRef
from peftserve.adapters.ownership import Actor, owner_of
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_file import NAME as REGISTRY
from peftserve.adapters.registry_file import connect
from peftserve.adapters.registry_reader import RegistryReader
from peftserve.adapters.seen import SharedConnection
from peftserve.adapters.stored_settings import SettingsReader

from ..config import ServerConfig
from ..wire.messages import EngineStats
from .engine.interface import RemoteEngine
from .pins import Pins

MOST_NAMED = 64  # versions of one content that events of the device name


@dataclass(frozen=True)
class Lifecycle:
    """The parts. catalogue: a connection for what takes its time, and `shared` for those who do not see all.

    settings: of names, read on it.
    """

    catalogue: RegistryReader
    shared: SharedConnection
    settings: SettingsReader
    events: EventLog
    pins: Pins
    housekeeper: Housekeeper

    def seen_by(self, actor: Actor) -> "Lifecycle":
        """Return the parts as one who asks sees them. Raises StateUnusable."""
        catalogue = self.shared.registry(self.catalogue, actor)
        return replace(self, catalogue=catalogue, settings=SettingsReader(catalogue))

    def settings_changed(self) -> None:
        """Let what depends on the settings of adapters look at them."""
        self.pins.wake()
        self.housekeeper.wake()


@asynccontextmanager
async def open_lifecycle(
    state_dir: Path, engine: RemoteEngine, registry: AdapterRegistry, library: AdapterLibrary, holders: Holders
) -> AsyncIterator[Lifecycle]:
    """Start the parts, and end them."""
    path = state_dir / REGISTRY
    with closing(RegistryReader(connect(path))) as catalogue, closing(SharedConnection(path)) as shared:
        settings, events = SettingsReader(catalogue), library.events
        pins = Pins(engine, registry, settings)
        housekeeper = Housekeeper(library, holders, catalogue)
        events.add_listener(pins.heed)
        engine.add_stats_listener(pins.observe)
        engine.add_stats_listener(DeviceEvents(events, registry).observe)
        tasks = [asyncio.create_task(housekeeper.run()), asyncio.create_task(pins.run())]
        try:
            yield Lifecycle(catalogue, shared, settings, events, pins, housekeeper)
        finally:
            events.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class DeviceEvents:
    """Adapters that come to the device and leave it, as the engine's statistics show them."""

    def __init__(self, events: EventLog, registry: RegistryReader) -> None:
        self._events = events
        self._registry = registry
        self._there: dict[str, list[tuple[VersionRef, str]]] = {}  # digest to versions, with their owners

    def observe(self, stats: EngineStats) -> None:
        """Tell of what is other than at the last look."""
        there = set(stats.device_adapters)
        for digest in self._there.keys() - there:
            for ref, owner in self._there.pop(digest):
                self._events.tell("adapter.unloaded", ref, owner=owner)
        for digest in there - self._there.keys():
            refs = self._registry.refs_of(digest)[:MOST_NAMED]
            owned = self._there[digest] = [
                (ref, self._registry.ask(partial(owner_of, name=ref.name)) or "") for ref in refs
            ]
            for ref, owner in owned:
                self._events.tell("adapter.loaded", ref, owner=owner)


def keeping_of(config: ServerConfig) -> Keeping:
    """Return what the operator has kept of adapters."""
    return Keeping(config.keep_deleted, config.keep_versions)
