"""The command `peftserve`: one parser, and one function for each sub-command. Imports nothing heavy."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from . import adapters, bench, merge, routes, serve, state
from .errors import CommandError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 when a server said no, 2 for a mistake in the command, 3 when no server answers."""
    chosen = make_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = chosen.run
    try:
        return run(chosen)
    except CommandError as error:
        print(f"peftserve: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peftserve", description="One frozen base model in memory, every PEFT adapter served on it."
    )
    parser.add_argument("--version", action="version", version=f"peftserve {version('peftserve')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    serve.add_parser(commands)
    adapters.add_parser(commands)
    routes.add_parser(commands)
    state.add_parser(commands)
    bench.add_parser(commands)
    merge.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
