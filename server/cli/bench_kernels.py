"""`peftserve bench kernels`: the bypasses of a batch alone, beside other implementations, on this machine."""

import argparse

from peftserve.kernels.bench import options

from .errors import CommandError


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser("kernels", help="the kernels, beside others' kernels", description=options.DESCRIPTION)
    options.add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from peftserve.kernels.bench.main import run_with  # it imports torch, which no other command needs

    try:
        return run_with(arguments)
    except options.UsageError as error:
        raise CommandError(str(error)) from None
