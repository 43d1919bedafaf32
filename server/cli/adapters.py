"""`peftserve adapters`: list, add, show and remove the adapters of a running server, and set its default."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.files import COMPANIONS, FILES, expert_folder, experts_of
from peftserve.adapters.source_folder import SourceFolder

from . import from_checkpoint
from .adapters_merge import add_merge_arguments, run_merge
from .client import Server, add_arguments
from .errors import CommandError
from .export import export, path_of
from .progress import CountedFile, Counter, progress

COLUMNS = ("name", "version", "method", "rank", "size", "state", "running", "created")
Card = Mapping[str, Any]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("adapters", help="list, add, show, remove adapters of a running server")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")

    _action(actions, "list", "all adapters", _list)

    add = _action(actions, "add", "upload an adapter, or a new version of one", _add)
    add.add_argument("name", metavar="NAME")
    add.add_argument("folder", metavar="FOLDER", type=Path, help=f"holds {' and '.join(FILES)}")

    show = _action(actions, "show", "one adapter's card", _show)
    show.add_argument("name", metavar="NAME")

    remove = _action(actions, "remove", "take adapters away; requests that run on them finish", _remove)
    remove.add_argument("names", metavar="NAME", nargs="+")
    remove.add_argument("--force", action="store_true", help="also if a route names it")

    back = _action(actions, "rollback", "make an older version's content the newest again", _roll_back)
    back.add_argument("name", metavar="NAME")
    back.add_argument("--to", type=int, metavar="N", help="the version (default: the one before the newest)")

    load = _action(actions, "load", "bring adapters to the device ahead of use", _load)
    load.add_argument("names", metavar="NAME", nargs="+", help="a name, or NAME@VERSION")

    restore = _action(actions, "restore", "bring back deleted adapters, where the server keeps them", _restore)
    restore.add_argument("names", metavar="NAME", nargs="+", help="a name, or NAME@VERSION")

    from_checkpoint.add_action(actions)
    add_merge_arguments(_action(actions, "merge", "make a new adapter out of others", run_merge))
    export = _action(actions, "export", "write an adapter's files to a folder, as they were uploaded", _export)
    export.add_argument("name", metavar="NAME", help="an adapter, or name@version")
    export.add_argument("--out", metavar="DIR", type=Path, help="the new folder (default: ./NAME)")

    default = _action(actions, "default", "show the server's default adapter, or set it", _default)
    choice = default.add_mutually_exclusive_group()
    choice.add_argument("name", metavar="NAME", nargs="?")
    choice.add_argument("--none", action="store_true", help="the bare base")


def _action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, about: str, run: Any
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    add_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    with Server(arguments.url, arguments.api_key) as server:
        cards = server.listed("/v1/adapters")
    print(table([_row(card) for card in cards]) if cards else "no adapters")
    return 0


def _add(arguments: argparse.Namespace) -> int:
    paths = files_of(arguments.folder)
    total = sum(path.stat().st_size for path in paths.values())
    with (
        Server(arguments.url, arguments.api_key) as server,
        ExitStack() as stack,
        progress(arguments.name, total, is_bytes=True) as show,
    ):
        sent = Counter(show, total).advance
        opened = {name: CountedFile(stack.enter_context(path.open("rb")), sent) for name, path in paths.items()}
        files = [("files", part) for part in opened.items()]
        card = server.call("POST", "/v1/adapters", data={"name": arguments.name}, files=files)
    print(f"{card['name']}@{card['version']}: {card['method']}, rank {card['rank']}, {_size(card)}")
    return 0


def files_of(folder: Path) -> dict[str, Path]:
    """Return an adapter's files by the names under which they are sent. Raises CommandError for what is missing."""
    try:
        own = {name: _file(folder, name) for name in SourceFolder(folder).weights()}
        own |= {name: folder / name for name in COMPANIONS if (folder / name).is_file()}
        experts = experts_of(folder)
    except AdapterError as error:
        raise CommandError(f"{folder}: {error.message}") from None
    return own | {
        f"{expert}/{name}": _file(expert_folder(folder, expert), name) for expert in experts for name in FILES
    }


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_file():
        return path
    if path.suffix == ".safetensors" and path.with_suffix(".bin").is_file():
        raise CommandError(f"{folder} holds pickled weights (adapter_model.bin); only safetensors are served")
    raise CommandError(f"{folder} holds no {name}")


def _show(arguments: argparse.Namespace) -> int:
    with Server(arguments.url, arguments.api_key) as server:
        card = server.call("GET", path_of(arguments.name))
    width = max(len(key) for key in card)
    for key, value in card.items():
        print(f"{key:<{width}}  {created(value) if key == 'created' else value}")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    return remove_all(arguments, path_of)


def remove_all(arguments: argparse.Namespace, path: Callable[[str], str]) -> int:
    """Remove what `names` says, with `force` also what a route names. path: of a name on the server."""
    with Server(arguments.url, arguments.api_key) as server:
        for name in arguments.names:
            server.call("DELETE", path(name), params={"force": "true"} if arguments.force else {})
            print(f"removed {name}")
    return 0


def _load(arguments: argparse.Namespace) -> int:
    with Server(arguments.url, arguments.api_key) as server:
        for name in arguments.names:
            card = server.call("POST", f"{path_of(name)}/load")
            print(f"{card['name']}@{card['version']} is on the device")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    with Server(arguments.url, arguments.api_key) as server:
        for name in arguments.names:
            for card in server.listed(f"{path_of(name)}/restore", "POST"):
                print(f"restored {card['name']}@{card['version']}")
    return 0


def _roll_back(arguments: argparse.Namespace) -> int:
    with Server(arguments.url, arguments.api_key) as server:
        card = server.call("POST", f"{path_of(arguments.name)}/rollback", json={"to": arguments.to})
    print(f"{card['name']}@{card['version']}: {card['method']}, rank {card['rank']}, {_size(card)}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    out = arguments.out or Path(arguments.name)
    with Server(arguments.url, arguments.api_key) as server:
        print(f"{out}: {export(server, arguments.name, out)}")
    return 0


def _default(arguments: argparse.Namespace) -> int:
    with Server(arguments.url, arguments.api_key) as server:
        if arguments.none or arguments.name:
            body = server.call("PUT", "/v1/default-adapter", json={"adapter": arguments.name})
        else:
            body = server.call("GET", "/v1/default-adapter")
    print(body["adapter"] or "none: the bare base")
    return 0


def _row(card: Card) -> Sequence[str]:
    shown = {**card, "size": _size(card), "running": card["requests_running"], "created": created(card["created"])}
    return [str(shown[column]) for column in COLUMNS]


def table(rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> str:
    """Return rows as left-aligned columns under their headings."""
    lines = [[column.upper() for column in columns], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _size(card: Card) -> str:
    return readable_size(card["size"])


def readable_size(num_bytes: float) -> str:
    """Return a size with three digits: `1.06MB` is of 1024 times 1024 bytes."""
    unit, units = "", iter("KMGTP")
    while num_bytes >= 999.5:
        num_bytes, unit = num_bytes / 1024, next(units)
    digits = 2 if num_bytes < 9.995 else 1 if num_bytes < 99.95 else 0
    return f"{num_bytes:.{digits}f}{unit}B"


def created(seconds: float) -> str:
    """Return a time as people read it, in this machine's time zone."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
