"""What changes a state folder: each operation as a client, or an operator, asks for it. Knows no faults."""

import shutil
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from peftserve.adapters import maintenance
from peftserve.adapters.errors import StateUnusable
from peftserve.adapters.keeping import ALL
from peftserve.adapters.records import FOLDER as RECORDS
from peftserve.adapters.routing.stored import FOLDER as ROUTES
from peftserve.adapters.stored_settings import FOLDER as SETTINGS

from .states import Opened, delete_registry, opened

ALIAS = '{"kind": "alias", "target": "b"}'
OTHER_ALIAS = '{"kind": "alias", "target": "c@2"}'

_TEXT = b'{"%s":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
_HEADER = struct.pack("<Q", len(_TEXT) - 1) + _TEXT  # of a file with one tensor, whose name has one letter
FOLDER = {  # a router with an expert, in weights of several files, as trainers write it
    "run/adapter_config.json": b'{"peft_type": "LORA", "target_modules": ["q_proj"], '
    b'"arrow_config": {"top_k": 1, "task_adapter_names": ["expert"]}}',
    "run/expert/adapter_config.json": b'{"peft_type": "LORA", "target_modules": ["q_proj"]}',
    **{
        f"run/{place}adapter_model-0000{i}-of-00002.safetensors": _HEADER % (b"%d" % i) + bytes(4)
        for place in ("", "expert/")
        for i in (1, 2)
    },
}

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
    "first upload": lambda state: state.upload("new", "9"),
    "upload": lambda state: state.upload("new", "9", tags=["x"]),
    "upload of a folder": lambda state: state.upload_folder("new", FOLDER),
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


async def start(root: Path) -> None:
    async with opened(root, ALL):
        pass


async def repair(root: Path) -> None:
    maintenance.repair(root)


async def back_up(root: Path) -> None:
    report = maintenance.back_up(_source(root), root)
    if report.damaged:  # an adapter that could not be copied; the operator is told so, and makes another
        shutil.rmtree(root)
        raise StateUnusable(f"not copied: {report.damaged}")


Work = Callable[[Path], Awaitable[None]]

OFFLINE: dict[str, Work] = {
    "first start": start,
    "first start of this release": start,
    "start": start,
    "repair": repair,
    "backup": back_up,
}
"""What is done while no server has the folder open."""


async def lose_registry(root: Path) -> None:
    """Delete the registry, which a start and a repair make again from what lies beside it: all but what was deleted."""
    async with opened(root) as state:
        await state.library.delete("d", purge=True)
        await state.library.settled()
    delete_registry(root)


async def lose_records(root: Path) -> None:
    """Delete what lies beside the registry, as older releases have put nothing there."""
    for folder in (RECORDS, ROUTES, SETTINGS):
        shutil.rmtree(root / folder)


async def lose_all(root: Path) -> None:
    shutil.rmtree(root)


async def move_away(root: Path) -> None:
    """Move the folder to where `back_up` takes it from, so that the folder that is looked at is the backup."""
    shutil.rmtree(_source(root), ignore_errors=True)
    root.rename(_source(root))


PREPARATIONS: dict[str, Work] = {
    "first upload": lose_all,
    "first start": lose_all,
    "first start of this release": lose_records,
    "start": lose_registry,
    "repair": lose_registry,
    "backup": move_away,
}
"""What is done to a filled folder before."""


def _source(root: Path) -> Path:
    return root.with_name("source")
