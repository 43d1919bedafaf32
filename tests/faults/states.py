"""A state folder without a model, opened as a server opens it, and checked for what must hold after any fault."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from peftserve.adapters import maintenance
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.files import CONFIG, WEIGHTS
from peftserve.adapters.keeping import Keeping
from peftserve.adapters.leases import Leases
from peftserve.adapters.library import AdapterLibrary
from peftserve.adapters.records import FOLDER as RECORDS
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_file import NAME as REGISTRY
from peftserve.adapters.registry_file import files_of
from peftserve.adapters.routing.policies import check_targets, targets_of
from peftserve.adapters.routing.stored import FOLDER as ROUTES
from peftserve.adapters.routing.stored import RouteStore
from peftserve.adapters.store import AdapterStore

FACTS = AdapterFacts("LORA", rank=8, num_bytes=100, primitives={"low_rank": 2}, sites=2, consumed=4)
KEPT = Keeping(deleted=3600.0)


@dataclass(frozen=True)
class Opened:
    """What a server has open."""

    store: AdapterStore
    registry: AdapterRegistry
    library: AdapterLibrary
    routes: RouteStore

    async def upload(self, name: str, content: str, **settings: object) -> None:
        """Add an adapter whose digest depends on `content`."""
        staged = self.store.stage(1 << 20)
        with staged:
            with staged.open(CONFIG) as file:
                text = f'{{"peft_type": "LORA", "target_modules": ["q_proj"], "base_model_name_or_path": "{content}"}}'
                file.write(text.encode())
            with staged.open(WEIGHTS) as file:
                file.write(b"\x02\0\0\0\0\0\0\0{}")
            await self.library.add(staged, name, settings=settings)

    async def upload_folder(self, name: str, files: Mapping[str, bytes]) -> None:
        """Add an adapter by the files of a client's folder, as the client calls them."""
        staged = self.store.stage(1 << 20)
        with staged:
            for sent, content in files.items():
                file = staged.receive(sent)
                assert file is not None, sent
                with file:
                    file.write(content)
            await self.library.add(staged, name)


class Snapshot(NamedTuple):
    """What clients can know of a folder. versions: name@version to digest. routes, settings: name to text."""

    versions: dict[str, str]
    default: str
    routes: dict[str, str]
    settings: dict[str, str]


@asynccontextmanager
async def opened(root: Path, keeping: Keeping = KEPT) -> AsyncIterator[Opened]:
    """Open a folder, brought into order first, with an engine that finds all adapters good."""

    async def inspect(digest: str, path: Path, tenant: str) -> AdapterFacts:
        return FACTS

    async def release(digest: str) -> None:
        return None

    with closing(AdapterStore(root)) as store, open_registry(root, store) as (registry, recovery):
        library = AdapterLibrary(
            store, registry, Leases(), inspect=inspect, release=release, lost=recovery.lost, keeping=keeping
        )
        try:
            yield Opened(
                store, registry, library, RouteStore(registry, "demo", targets_of, root / ROUTES, check_targets)
            )
        finally:
            await library.close()


def snapshot(state: Opened) -> Snapshot:
    """Describe a folder that is open."""
    default = state.registry.get_default()
    settings = state.registry.read("SELECT name, body FROM documents WHERE kind = 'settings'")
    return Snapshot(
        {f"{ref.name}@{ref.version}": ref.digest for ref in state.registry.refs()},
        "" if default is None else f"{default.name}@{default.version}",
        {route.name: route.text for route in state.routes.page()},
        dict(settings),
    )


async def reopened(root: Path) -> Snapshot:
    """Start on a folder as the next server does, and check that it is in order. Raises AssertionError."""
    async with opened(root) as state:
        await state.library.settled()
        state.registry.check_integrity()
        state.store.check_integrity()
        found = snapshot(state)
        kept = state.registry.restorable()
        assert set(state.store.digests()) == {*found.versions.values(), *kept}, "files of no version, or none for one"
    check(root)
    return found


def delete_registry(root: Path) -> None:
    """Delete the registry, of a folder that nobody has open."""
    for file in files_of(root / REGISTRY):
        file.unlink()


def check(root: Path) -> None:
    """Check that `peftserve state check` finds nothing, and that no fault has left anything. Raises AssertionError."""
    report = maintenance.check(root)
    assert (report.damaged, report.found) == ([], [])
    left = [path for path in root.rglob("*") if path.name.startswith(".") or path.parent.name == "staging"]
    assert left == [], "left behind"
    needless = [path for path in (root / RECORDS).glob("*.gone") if path.with_suffix(".json").exists()]
    assert needless == [], "marked as gone, and there"
    assert not (root / "lost+found").exists(), "a fault of the disk is no damage"


def files(root: Path) -> set[str]:
    """Return the paths of all files that lie in a folder.

    But for those that SQLite makes as it likes, and marks of versions that are gone, without which a deletion is one.
    """
    paths = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return {path for path in paths if not path.startswith(REGISTRY) and not path.endswith(".gone")}
