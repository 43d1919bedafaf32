"""`peftserve models`: what the field `model` of a request may be on a running server."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from .adapters import created, table
from .client import Server, add_arguments

COLUMNS = ("name", "kind", "max tokens", "created")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "models",
        help="list the base, adapters and routes of a running server",
        description="List all that a request can name as its model: the base, each adapter, each route.",
    )
    parser.add_argument("--json", action="store_true", help="the server's own list, for programs")
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    with Server(arguments.url, arguments.api_key) as server:
        models = server.listed("/v1/models")
        routes = {} if arguments.json else {card["name"] for card in server.listed("/v1/routes")}
    if arguments.json:
        print(json.dumps(models, indent=2, ensure_ascii=False))
    else:
        print(table([_row(model, model["id"] in routes) for model in models], COLUMNS))
    return 0


def _row(model: Mapping[str, Any], is_route: bool) -> list[str]:
    kind = "route" if is_route else "adapter" if model.get("parent") else "base"
    return [model["id"], kind, str(model.get("max_model_len") or ""), created(model["created"])]
