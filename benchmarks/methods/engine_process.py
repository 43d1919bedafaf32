"""The engine process of `python -m benchmarks.methods`: makes adapters, measures them beside LoRA, prints JSON lines.

    python -m benchmarks.methods.engine_process BASE --device cuda LoRA DoRA ...

LoRA must be among the methods, and first. A failure is a line, too.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import LlamaForCausalLM

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine

from ..engine.stepping import finish, run, settle, start, steps
from ..models.llama import scratch_folder
from .catalog import CATALOG, Make

ADAPTERS, SEQUENCES, CONTEXT, STEPS = 8, 16, 64, 16
MEMORY = 16 << 30  # bytes of compiled adapters, on the host and on the device


def main() -> int:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        engine = make_engine(arguments)
        say({"start": True})
        lora = list[str]()
        for name in arguments.methods:
            try:
                begin = time.monotonic()
                digests = make_adapters(engine, arguments, Path(folder), name, CATALOG[name])
                made = time.monotonic() - begin
                lora = lora or digests
                say({"method": name, "made_s": round(made, 2), **measured(engine, digests, lora, arguments.rounds)})
                for digest in digests if digests is not lora else ():
                    engine.release_adapter(digest)
            except Exception as error:  # whatever it is, the others are still to be measured
                say({"method": name, "problem": f"{type(error).__name__}: {error}".splitlines()[0][:300]})
                finish(engine, SEQUENCES)
        engine.close()
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("methods", nargs="+", choices=CATALOG)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def make_engine(arguments: argparse.Namespace) -> Engine:
    memory = MEMORY if arguments.device == "cuda" else MEMORY >> 4
    options: dict[str, Any] = {"device": arguments.device, "dtype": arguments.dtype, "prefix_caching": False}
    options |= {"kv_cache_tokens": SEQUENCES * 1024, "max_running": SEQUENCES, "max_loras": 2 * ADAPTERS}
    options |= {"adapter_memory": memory, "host_adapter_memory": memory}
    return Engine(EngineConfig(model=str(arguments.base), **options))


def make_adapters(engine: Engine, arguments: argparse.Namespace, folder: Path, name: str, make: Make) -> list[str]:
    """Make adapters with PEFT from one model, with parameters drawn anew for each.

    Return the names that the engine has.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dtype = getattr(torch, arguments.dtype)
        base = LlamaForCausalLM.from_pretrained(arguments.base, dtype=dtype).to(arguments.device)
        model = peft.get_peft_model(base, make())
        digests = []
        for index in range(ADAPTERS):
            randomize(model, index)
            target = folder / f"{name.replace(' ', '-')}-{index}"
            model.save_pretrained(target)
            engine.inspect_adapter(target.name, target)
            digests.append(target.name)
    return digests


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Move trainable parameters by steps so small that methods which multiply by them stay finite."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.01 * torch.randn_like(parameter))


def measured(engine: Engine, digests: Sequence[str], lora: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return medians of rounds in which the method and LoRA take turns, after one run of each."""
    for used in (digests, lora):
        run(engine, SEQUENCES, used, CONTEXT, 4, 0)
    own, others = list[float](), list[float]()
    for number in range(rounds):
        turns = [(digests, own), (lora, others)]
        for used, taken in turns if number % 2 else reversed(turns):
            taken.append(decode(engine, used))
    ratios = [mine / its for mine, its in zip(own, others, strict=True)]
    return {
        "step_ms": statistics.median(own) * 1e3,
        "lora_ms": statistics.median(others) * 1e3,
        "beside_lora": statistics.median(ratios),
        "rounds_ms": [seconds * 1e3 for seconds in own],
    }


def decode(engine: Engine, used: Sequence[str]) -> float:
    """Return the seconds of a step in which all sequences decode."""
    start(engine, SEQUENCES, used, CONTEXT, STEPS + 8)
    settle(engine, SEQUENCES)
    steps(engine, 2)
    seconds = steps(engine, STEPS)
    finish(engine, SEQUENCES)
    return seconds


def say(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    sys.exit(main())
