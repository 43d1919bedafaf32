"""What outputs that are held to a grammar cost a decode step, and what the first use of a schema costs.

    python -m benchmarks.engine.structured --device cpu --dtype float32 --shape 135m --layers 30 --out FILE.jsonl

The base has random weights and a byte-level vocabulary of all its width. Steps of --sequences, --held of which write
JSON of a schema, take turns with steps of as many of which none does, a few at a time, in one process. Figures are
medians over all steps, on a CPU of the process's time, which neighbours lengthen least; the ratio is the median of the
rounds' ratios, whose two sides had the same neighbours. For the first use, whose time is the clock's, all schemas
differ: the API's check, and the engine's compilation with the first mask.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from peftserve.server.api.openai.completion_request import CompletionRequest
from peftserve.server.api.openai.structured import grammar_of
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.grammar.compiler import GrammarCompiler, Words
from peftserve.server.wire.messages import AddRequest, SamplingParams

from ..machine import machine_of
from ..models.llama import WIDTHS, make_config, scratch_folder, write_base
from ..models.words import Schema, endless, make_schema, write_tokenizer
from ..records import append
from ..tables import Table
from .stepping import finish, settle, step, synchronize

FIGURES = Table(
    {"temperature": "12.1f", "plain ms": "10.3f", "held ms": "9.3f", "ratio": "7.3f", "least ratio": "12.3f"}
)


def main() -> int:
    arguments = parse_arguments()
    config, dtype = make_config(arguments.shape, arguments.layers), getattr(torch, arguments.dtype)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.scratch or scratch_folder()) as folder:
        base = Path(folder) / "base"
        write_base(base, config, dtype, arguments.device)
        write_tokenizer(base, config.vocab_size)
        about = {**machine_of(arguments.device), "shape": arguments.shape, "layers": arguments.layers}
        about |= {"dtype": arguments.dtype, "sequences": arguments.sequences, "held": arguments.held}
        append(arguments.out, part="structured", kind="machine", **about)
        print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
        first_uses(arguments, (base / "tokenizer.json").read_text(encoding="utf-8"))
        engine = make_engine(arguments, base)
        print(FIGURES.heading())
        for temperature in arguments.temperature:
            measure(arguments, engine, temperature)
        engine.close()
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--shape", choices=WIDTHS, default="8b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--held", type=int, default=8, help="of them, to a grammar")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8, help="of each kind in a round")
    parser.add_argument("--schemas", type=int, default=20, help="whose first use is timed")
    parser.add_argument("--schema-bytes", type=int, default=5000)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--scratch", type=Path, help="folder with room for the base")
    parser.add_argument("--out", type=Path, help="also append the figures, as lines of JSON")
    return parser.parse_args()


def make_engine(arguments: argparse.Namespace, base: Path) -> Engine:
    options: dict[str, Any] = {"device": arguments.device, "dtype": arguments.dtype, "prefix_caching": False}
    options |= {"num_threads": arguments.threads} if arguments.threads else {}
    tokens = arguments.sequences * (arguments.context + tokens_of(arguments) + 16)
    options |= {"max_running": arguments.sequences, "kv_cache_tokens": tokens}
    return Engine(EngineConfig(model=str(base), store=base, **options))


def tokens_of(arguments: argparse.Namespace) -> int:
    """Return how many tokens each sequence makes in a round, those while the last ones' prompts still run included."""
    return int(arguments.steps + arguments.sequences + 16)


def measure(arguments: argparse.Namespace, engine: Engine, temperature: float) -> None:
    rounds = []
    for number in range(arguments.rounds + 1):  # the first compiles
        kinds = (0, arguments.held) if number % 2 else (arguments.held, 0)
        taken = {held: steps_ms(arguments, engine, temperature, held, number) for held in kinds}
        rounds.append((taken[0], taken[arguments.held]))
    plain, held = ([ms for taken in rounds[1:] for ms in taken[kind]] for kind in (0, 1))
    ratios = [statistics.median(with_) / statistics.median(without) for without, with_ in rounds[1:]]
    found = {
        "plain_ms": statistics.median(plain),
        "held_ms": statistics.median(held),
        "ratio": statistics.median(ratios),
    }
    found |= {"least_ratio": min(held) / min(plain)}
    every = {"rounds_plain_ms": [a for a, _ in rounds[1:]], "rounds_held_ms": [b for _, b in rounds[1:]]}
    append(arguments.out, part="structured", kind="step", temperature=temperature, **found, **every)
    print(FIGURES.line(temperature, *found.values()), flush=True)


def steps_ms(arguments: argparse.Namespace, engine: Engine, temperature: float, held: int, seed: int) -> list[float]:
    """Begin sequences of which every other is held to a grammar until `held` are; return the milliseconds of steps."""
    random = Random(seed)
    grammars = [grammar(endless(random)) if i % 2 == 0 and i // 2 < held else None for i in range(2 * held)]
    grammars += [None] * (arguments.sequences - len(grammars))
    for index, one in enumerate(grammars[: arguments.sequences]):
        prompt = random.choices(range(3, engine.info.vocab_size), k=arguments.context)
        sampling = SamplingParams(
            max_tokens=tokens_of(arguments), temperature=temperature, seed=index, ignore_eos=True, grammar=one
        )
        engine.add_request(AddRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling, adapters=[]))
    settle(engine, arguments.sequences)
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    taken = [timed_step(engine, arguments.sequences, clock) for _ in range(arguments.steps)]
    finish(engine, arguments.sequences)
    return taken


def timed_step(engine: Engine, sequences: int, clock: Callable[[], float]) -> float:
    synchronize()
    begin = clock()
    stepped = step(engine)
    synchronize()
    taken = clock() - begin
    assert len(stepped) == sequences, "a sequence has ended, so that this step is another than was to be measured"
    return taken * 1e3


def grammar(schema: Schema) -> str:
    body = CompletionRequest.model_validate({"prompt": "", "guided_json": schema})
    made = asyncio.run(grammar_of(body))
    assert made is not None
    return made


def first_uses(arguments: argparse.Namespace, tokenizer: str) -> None:
    """Time schemas that have not been seen, one after the other."""
    compiler = GrammarCompiler(Words(tokenizer, (0,)))
    words = -(-int(WIDTHS[arguments.shape]["vocab_size"]) // 32)
    checks, compilations, sizes = [], [], []
    for seed in range(-1, arguments.schemas):  # before the first, the vocabulary is made
        schema = make_schema(Random(seed), arguments.schema_bytes)
        times = [time.perf_counter()]
        made = grammar(schema)
        times.append(time.perf_counter())
        compiler.compile(made, (0,)).result().fill(np.zeros(words, np.int32))
        times.append(time.perf_counter())
        if seed >= 0:
            sizes.append(len(json.dumps(schema)))
            checks.append((times[1] - times[0]) * 1e3)
            compilations.append((times[2] - times[1]) * 1e3)
    compiler.close()
    both = [check + compilation for check, compilation in zip(checks, compilations, strict=True)]
    found = {"bytes": statistics.median(sizes), "check_ms": statistics.median(checks)}
    found |= {"compile_ms": statistics.median(compilations), "both_ms": statistics.median(both), "most_ms": max(both)}
    append(arguments.out, part="structured", kind="first use", schemas=arguments.schemas, **found)
    print(", ".join(f"{name} {value:.1f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
