"""What a method costs at decode beside LoRA of the same rank: one engine, sixteen sequences, eight adapters.

    python benchmarks/methods.py --rounds 5 --out benchmarks/results/methods.json

Methods take turns in every round, and a ratio is taken within its round. Seconds are of decode steps alone, in which
every sequence makes one token; prompts are short and of one length.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from engine_vs_peft import machine
from smollm import write_base
from tqdm import tqdm
from transformers import LlamaForCausalLM

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AdapterPart, AddRequest, SamplingParams

RANK = 16
ADAPTERS = 8
SEQUENCES = 16
STEPS = 24
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(**options: object) -> peft.PeftConfig:
    return peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS, task_type="CAUSAL_LM", **options)


METHODS: dict[str, Callable[[], peft.PeftConfig] | None] = {
    "base": None,
    "LoRA": lora,
    "DoRA": lambda: lora(use_dora=True),
    "LoRA with biases": lambda: lora(lora_bias=True, init_lora_weights=False),
    "IA3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), arguments.rounds, arguments.dtype)
    report = make_report(seconds)
    for name, entry in report["methods"].items():
        print(f"{name:<20}{entry['step_ms']:10.2f} ms a step{entry['beside_lora']:10.3f} x LoRA")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(folder: Path, rounds: int, dtype: str) -> dict[str, list[float]]:
    """Seconds of a decode step, by method, one figure a round; the first round is not counted."""
    base = folder / "base"
    write_base(base)
    engine = Engine(
        EngineConfig(model=str(base), dtype=dtype, kv_cache_tokens=8192, max_loras=64, adapter_memory=2 << 30)
    )
    digests = {name: write(engine, base, folder, name, make) for name, make in METHODS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    names = list(METHODS)
    for number in tqdm(range(rounds + 1), unit="round"):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken = decode(engine, digests[name])
            if number:
                seconds[name].append(taken)
    engine.close()
    return seconds


def write(engine: Engine, base: Path, folder: Path, name: str, make: Callable[[], peft.PeftConfig] | None) -> list[str]:
    """Random adapters of one method, known to the engine; their digests."""
    digests = []
    for index in range(ADAPTERS if make else 0):
        torch.manual_seed(index)
        model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16), make())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        target = folder / f"{name}-{index}"
        model.to(torch.bfloat16).save_pretrained(target)
        engine.inspect_adapter(target.name, target)
        digests.append(target.name)
    return digests


def decode(engine: Engine, digests: list[str]) -> float:
    """Median seconds of the steps in which all sequences decode."""
    for index in range(SEQUENCES):
        parts = [AdapterPart(digests[index % len(digests)])] if digests else []
        sampling = SamplingParams(max_tokens=STEPS + 8, temperature=0.0, ignore_eos=True)
        prompt = [3 + index, *range(20, 35)]
        engine.add_request(
            AddRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling, adapters=parts)
        )
    taken = []
    while engine.has_work():
        start = time.perf_counter()
        made = len(engine.step())
        if made == SEQUENCES:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def make_report(seconds: dict[str, list[float]]) -> dict[str, object]:
    methods = {
        name: {
            "step_ms": 1000 * statistics.median(values),
            "beside_lora": statistics.median(a / b for a, b in zip(values, seconds["LoRA"], strict=True)),
            "rounds_ms": [1000 * value for value in values],
        }
        for name, values in seconds.items()
    }
    work = {"rank": RANK, "adapters": ADAPTERS, "sequences": SEQUENCES, "steps": STEPS}
    return {"command": shlex.join(["python", *sys.argv]), "machine": machine(), "work": work, "methods": methods}


if __name__ == "__main__":
    sys.exit(main())
