"""What changes a state folder: each operation as a client, or an operator, asks for it. Knows no faults."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from peftserve.adapters import maintenance
from peftserve.adapters.keeping import ALL
from peftserve.adapters.registry_file import files_of

from .states import Opened, opened

ALIAS = '{"kind": "alias", "target": "b"}'
OTHER_ALIAS = '{"kind": "alias", "target": "c@2"}'

Operation = Callable[[Opened], Awaitable[object]]


async def fill(root: Path) -> None:
    """Make a folder with several of everything."""
    async with opened(root) as state:
        for name, content in (("a", "1"), ("b", "2"), ("c", "3"), ("c", "4"), ("d", "5"), ("e", "1")):
            await state.upload(name, content, tags=[f"of-{name}"])
        await state.library.set_default("a")
        for route in ("old", "passing"):
            state.routes.put(route, ALIAS)
        await state.library.delete("d")
        await state.library.settled()


async def put_route(state: Opened) -> None:
    state.routes.put("old", OTHER_ALIAS)


async def make_route(state: Opened) -> None:
    state.routes.put("new", ALIAS)


async def delete_route(state: Opened) -> None:
    state.routes.delete("passing")


OPERATIONS: dict[str, Operation] = {
    "upload": lambda state: state.upload("new", "9", tags=["x"]),
    "upload of what is there": lambda state: state.upload("new", "2"),
    "new version": lambda state: state.upload("a", "8"),
    "rollback": lambda state: state.library.roll_back("c"),
    "deletion": lambda state: state.library.delete("b"),
    "deletion for good": lambda state: state.library.delete("b", purge=True),
    "deletion of a version": lambda state: state.library.delete("c", 2, purge=True),
    "deletion of the default": lambda state: state.library.delete("a", purge=True),
    "restoration": lambda state: state.library.restore("d"),
    "default": lambda state: state.library.set_default("c@1"),
    "no default": lambda state: state.library.set_default(None),
    "settings": lambda state: state.library.set("b", {"tags": ["y"], "ttl": 1e6}),
    "new route": make_route,
    "route": put_route,
    "deletion of a route": delete_route,
}


async def lose_registry(root: Path) -> None:
    """Delete the registry, which a start and a repair make again from what lies beside it: all but what was deleted."""
    async with opened(root) as state:
        await state.library.delete("d", purge=True)
        await state.library.settled()
    for file in files_of(root / "registry.sqlite"):
        file.unlink()


async def start(root: Path) -> None:
    async with opened(root, ALL):
        pass


async def repair(root: Path) -> None:
    maintenance.repair(root)


OFFLINE: dict[str, Callable[[Path], Awaitable[None]]] = {"start": start, "repair": repair}
"""What is done to a folder that has lost its registry, while no server has it open."""
