"""`peftserve routes`: list, show, set, remove and explain the routes of a running server."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .adapters import created, remove_all, table
from .client import Server, add_arguments
from .errors import CommandError

COLUMNS = ("name", "version", "kind", "leads to", "created")
Card = Mapping[str, Any]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("routes", help="list, show, set, remove, explain routes of a running server")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")

    _action(actions, "list", "all routes", _list)

    show = _action(actions, "show", "one route's card, as JSON", _show)
    show.add_argument("name", metavar="NAME")

    put = _action(actions, "set", "make a route, or replace it between two requests", _set)
    put.add_argument("name", metavar="NAME")
    put.add_argument("body", metavar="FILE_OR_JSON", help='such as {"kind": "alias", "target": "support@3"}')

    remove = _action(actions, "remove", "take routes away", _remove)
    remove.add_argument("names", metavar="NAME", nargs="+")
    remove.add_argument("--force", action="store_true", help="also if another route names it")

    explain = _action(actions, "explain", "what a route would choose for a prompt, which is not answered", _explain)
    explain.add_argument("name", metavar="NAME")
    explain.add_argument("prompt", metavar="PROMPT")
    explain.add_argument("--user", help="the id of an end user, for splits that are sticky")


def _action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, about: str, run: Any
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    add_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    with Server(arguments.url, arguments.api_key) as server:
        cards = server.listed("/v1/routes")
    rows = [[c["name"], str(c["version"]), c["kind"], _targets(c), created(c["created"])] for c in cards]
    print(table(rows, COLUMNS) if rows else "no routes")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with Server(arguments.url, arguments.api_key) as server:
        card = server.call("GET", _path(arguments.name))
    print(json.dumps(card, indent=2, ensure_ascii=False))
    return 0


def _set(arguments: argparse.Namespace) -> int:
    content = _content(arguments.body)
    with Server(arguments.url, arguments.api_key) as server:
        card = server.call("PUT", _path(arguments.name), content=content, headers={"content-type": "application/json"})
    print(f"{card['name']}@{card['version']}: {card['kind']}, {_targets(card)}")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    return remove_all(arguments, _path)


def _explain(arguments: argparse.Namespace) -> int:
    body = {"prompt": arguments.prompt, "user": arguments.user}
    with Server(arguments.url, arguments.api_key) as server:
        answer = server.call("POST", f"{_path(arguments.name)}/explain", json=body)
    arm = "" if answer["arm"] is None else f" (arm {answer['arm']})"
    print(f"{answer['route']}@{answer['version']} chooses {answer['chosen']}{arm}")
    for score in sorted(answer["scores"], key=lambda score: -score["score"]):
        print(f"{score['score']:7.3f}  {score['target']}")
    return 0


def _content(body: str) -> bytes:
    """Return a route's body: the text itself where it is a JSON object, else a file's content. Raises CommandError."""
    if body.lstrip().startswith("{"):
        return body.encode()
    try:
        return Path(body).read_bytes()
    except OSError as error:
        raise CommandError(f"{body} is no JSON object, and no file that can be read: {error.strerror}") from None


def _targets(card: Card) -> str:
    """Return what a route leads to, as one line."""
    named = [part.get("target") or part.get("name") for part in _parts(card)]
    alone = [card["target"]] if "target" in card else card.get("targets", [])
    shown = [*alone, *named]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _parts(card: Card) -> list[Any]:
    return [*card.get("arms", ()), *card.get("adapters", ()), *card.get("candidates", ())]


def _path(name: str) -> str:
    return f"/v1/routes/{quote(name, safe='@')}"
