"""The command line of the kernel benchmark."""

import argparse
from pathlib import Path

RESULTS, PEERS = Path("benchmarks", "results"), Path("benchmarks", "peers")
SHAPES = ("llama-8b", "smollm-135m")
DESCRIPTION = "Times the bypasses of a batch alone, beside other implementations, as multiples of the least time."


class UsageError(ValueError):
    """The command line asks for something that does not exist."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=DESCRIPTION)
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    dtypes = ("bfloat16", "float16", "float32")
    add(
        "--dtype", choices=dtypes, help="(default: bfloat16 on a GPU, float32 on a CPU, where not all are fast at less)"
    )
    add("--shape", choices=SHAPES, help="whose linears (default: llama-8b on a GPU, smollm-135m on a CPU)")
    add("--layers", type=_positive, metavar="N", help="layers timed (default: as many as no cache holds)")
    add("--phase", choices=("decode", "prefill", "all"), default="all")
    add("--table", action="store_true", help="the steps of the table in docs/kernels.md alone")
    add("--quick", action="store_true", help="a few steps, few rounds")
    add("--rounds", type=_positive, metavar="N", help="turns of each contender (default: 20 on a GPU, 7 on a CPU)")
    add("--minutes", type=float, metavar="M", help="start no further step after so long")
    add("--jobs", type=int, default=0, metavar="N", help="first compile the GPU kernels of all steps in N processes")
    add("--peers", type=Path, metavar="DIR", help=f"Python files with contenders (default: {PEERS}, if it is here)")
    add("--only", metavar="NAME,...", help="these contenders beside ours")
    add("--out", type=Path, metavar="DIR", help=f"for the JSON and the plot (default: {RESULTS}, if it is here, or .)")
    add("--no-plot", action="store_true", help="the JSON alone")
    add("--tune", action="store_true", help="first choose the kernels' designs for this GPU, in a minute or --minutes")


def peers_folder(options: argparse.Namespace) -> Path | None:
    chosen: Path | None = options.peers or (PEERS if PEERS.is_dir() else None)
    return chosen


def out_folder(options: argparse.Namespace) -> Path:
    chosen: Path = options.out or (RESULTS if RESULTS.is_dir() else Path())
    return chosen


def command(options: argparse.Namespace) -> str:
    """Return the command as one would type it again, without folders, which are of one machine."""
    given = vars(options)
    words = ["python -m benchmarks.kernels"]
    for action in make_parser()._actions:
        value = given.get(action.dest, action.default)
        if action.option_strings and value != action.default and action.type is not Path:
            words.append(action.option_strings[0] if value is True else f"{action.option_strings[0]} {value}")
    return " ".join(words)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value
