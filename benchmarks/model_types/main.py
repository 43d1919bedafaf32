"""Every causal type of model that transformers has, small and random: served, beside what transformers and PEFT answer.

    python -m benchmarks.model_types [--types llama,bert] [--seed 0] [--hidden 64] [--out FILE.jsonl] [--table FILE.md]
        [--layers 4] [--heads 2] [--kv-heads 1] [--tied 1] [--methods all] [--lengths 5,23,41]

Each type runs in a process of its own: a checkpoint of a small configuration, one adapter of each method on all its
linears, three prompts of which each is answered by the bare base and by every adapter, in one batch, in chunks. A
verdict is `exact` where tokens are equal and log-probabilities close; else it says what there was instead. What is in
the file already, for this setting, is not run again. --table writes the verdicts between the marks of a page.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..records import Record, append, read
from .page import write_table
from .processes import each_alone
from .setting import COMMON, LENGTHS, Setting


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    known = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    types = known if arguments.types is None else arguments.types.split(",")
    if unknown := [name for name in types if name not in known]:
        print(f"transformers has no causal type {', '.join(unknown)}", file=sys.stderr)
        return 2
    setting = Setting.of(arguments)
    done = recorded(arguments.out, setting)
    for record in each_alone([name for name in types if name not in done], setting, arguments.limit):
        append(arguments.out, **record)
        done[record["type"]] = record
        print(line(record), flush=True)
    found = [done[name] for name in types if name in done]
    print(summary(found), flush=True)
    if arguments.table is not None:
        write_table(arguments.table, found)
    return int(
        any(verdict.startswith(("failed", "wrong")) for record in found for verdict in record["verdicts"].values())
    )


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", help="names of types, with commas between them; all without")
    parser.add_argument("--seed", type=int, default=0, help="of sizes, weights and prompts")
    parser.add_argument("--hidden", type=int, help="hidden size, a multiple of 32; drawn by the seed without")
    parser.add_argument("--layers", type=int, help="how many layers, where each kind of layer needs no more")
    parser.add_argument("--heads", type=int, help="how many heads of attention; heads of 16 without")
    parser.add_argument("--kv-heads", type=int, help="how many heads of keys and values, 2 without")
    parser.add_argument(
        "--tied", type=int, choices=(0, 1), help="whether the head is the embedding; as types are without"
    )
    parser.add_argument("--methods", type=_methods, default=COMMON, help="names of methods with commas, or all")
    parser.add_argument("--lengths", type=_lengths, default=LENGTHS, help="of the prompts, with commas")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a type may take")
    parser.add_argument("--out", type=Path, help="append the verdicts, as lines of JSON; types in it are not run again")
    parser.add_argument("--table", type=Path, help="page into which the table is written")
    arguments = parser.parse_args(words)
    if arguments.table is not None and not {*COMMON} <= {*arguments.methods}:
        parser.error(f"the table is of {', '.join(COMMON)}")
    try:
        Setting.of(arguments).shape()
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _methods(text: str) -> tuple[str, ...]:
    from .methods import METHODS  # here, so that the process that starts others needs no PEFT

    names = tuple(METHODS) if text == "all" else tuple(text.split(","))
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(METHODS)}")
    return names


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(int(length) for length in text.split(","))


def recorded(out: Path | None, setting: Setting) -> dict[str, Record]:
    """Return what a file has for a setting, by type."""
    records = [] if out is None else read(out)
    return {record["type"]: record for record in records if setting.is_of(record)}


def line(record: Record) -> str:
    verdicts = record["verdicts"]
    alike = len(set(verdicts.values())) == 1
    text = next(iter(verdicts.values())) if alike else "; ".join(f"{name}: {said}" for name, said in verdicts.items())
    return f"{record['type']:<28}{record['seconds']:6.1f} s  {text}"


def summary(records: Sequence[Record]) -> str:
    """Count types by the worst of their verdicts."""
    counts = Counter(worst(record["verdicts"].values()) for record in records)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def worst(verdicts: Collection[str]) -> str:
    """Return the kind of the worst verdict. That PEFT has no such adapter is none."""
    kinds = {verdict.partition(":")[0] for verdict in verdicts}
    return next((kind for kind in ("failed", "wrong", "refused", "not built") if kind in kinds), "exact")
