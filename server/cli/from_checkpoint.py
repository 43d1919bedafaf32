"""`peftserve adapters from-checkpoint`: write the difference of two checkpoints as an adapter. Needs no server."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FAILED, CommandError
from .progress import progress

if TYPE_CHECKING:
    from ..checkpoint.difference.extract import Extracted


def add_action(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "from-checkpoint",
        help="write what a tuned checkpoint changes in its base as an adapter",
        description="Write what TUNED changes in BASE, after a full or a partial fine-tuning, as an adapter in PEFT's "
        "format, in its smallest form. It is exact, unless --max-error or --rank allows less.",
    )
    parser.add_argument("base", metavar="BASE", help="folder or hub id of the base")
    parser.add_argument("tuned", metavar="TUNED", help="folder or hub id of the checkpoint that was tuned from it")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the new folder")
    parser.add_argument(
        "--max-error",
        metavar="E",
        type=float,
        help="also low-rank factors, where no number of a weight differs from the tuned one by more than E",
    )
    parser.add_argument(
        "--rank",
        metavar="N",
        type=int,
        help="largest rank of factors; without --max-error, changed linear layers get the best factors of rank N",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the models")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from ..checkpoint.difference.extract import ExtractRequest, extract  # late: a mistake in a flag needs no model
    from ..checkpoint.difference.forms import Limits
    from ..checkpoint.errors import MergeRefused

    request = ExtractRequest(
        base=arguments.base,
        tuned=arguments.tuned,
        name=arguments.base,
        out=arguments.out,
        limits=Limits(arguments.max_error, arguments.rank),
        trust_remote_code=arguments.trust_remote_code,
    )
    try:
        with progress("comparing") as show:
            extracted = extract(request, show)
    except MergeRefused as error:
        raise CommandError(str(error), FAILED) from None
    except OSError as error:
        raise CommandError(f"{error.strerror or error}: {error.filename or arguments.out}", FAILED) from None
    print("\n".join(_report(arguments.out, extracted)))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise CommandError for what no checkpoint is needed to refuse."""
    error, rank = arguments.max_error, arguments.rank
    if error is not None and not (math.isfinite(error) and error >= 0):
        raise CommandError(f"--max-error: {error} is no number of 0 or more")
    if rank is not None and rank < 1:
        raise CommandError(f"--rank: {rank} is no whole number of 1 or more")
    if arguments.out.exists():
        raise CommandError(f"--out: there is something at {str(arguments.out)!r} already; name a new folder")


def _report(out: Path, extracted: "Extracted") -> list[str]:
    """Return one line for each module that differs, and one for the whole."""
    from .adapters import readable_size, table

    rows = [(one.module, one.form, readable_size(one.num_bytes), f"{one.error:.3g}") for one in extracted.findings]
    largest = max(one.error for one in extracted.findings)
    exact = "exact" if largest == 0 else f"no number differs by more than {largest:.3g}"
    total = f"{out}: {extracted.method}, {readable_size(extracted.num_bytes)}, {exact}"
    lines = [table(rows, ("module", "form", "size", "error")), f"{total}; {extracted.same} modules are as they were"]
    left = len(extracted.unread)
    return [*lines, f"left out: {left} modules that differ and that no text passes"] if left else lines
