"""A decode step of the engine beside its floor, with and without adapters, and how much of it the device is busy.

    python benchmarks/decode_step.py --device cuda --sequences 1 16 64 256 --out FILE.json

The base has the widths of an 8B Llama and random weights; --layers says how deep it is, and time and floor grow with it
alike. Each sequence has --context tokens when it is measured. The engine without adapters, with adapters that nobody
uses, and with one of rank 16 for each sequence (at most --adapters) take turns. The floor is every byte of weights, of
keys and values, and of the step's adapters once, at the bandwidth that a copy reaches here.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from machine import machine
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from peftserve.adapters.files import CONFIG, WEIGHTS, content_digest
from peftserve.kernels.bench.cost import measure_machine
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AdapterPart, AddRequest, SamplingParams

RANK = 16
WIDTHS = {
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
}
MODES = ("no adapters", "adapters unused", "adapters")


def main() -> int:
    arguments = parse_arguments()
    dtype = getattr(torch, arguments.dtype)
    config = LlamaConfig(
        **WIDTHS[arguments.shape], num_hidden_layers=arguments.layers, max_position_embeddings=8192, eos_token_id=None
    )
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        base, store = Path(folder) / "base", Path(folder) / "store"
        weights = write_base(base, config, dtype, arguments.device)
        digests = write_adapters(base, store, arguments.adapters)
        bandwidth = measure_machine(arguments.device, dtype).bandwidth
        rows = measure(arguments, base, store, digests, Floor(config, weights, dtype, bandwidth))
    print(f"{bandwidth / 1e9:.0f} GB/s; {arguments.layers} layers of {arguments.shape}, {arguments.dtype}")
    print(f"{'sequences':>9}  {'engine':<18}{'step ms':>9}{'floor ms':>10}{'ratio':>7}{'busy':>7}")
    for row in rows:
        busy = "" if row["busy"] is None else f"{row['busy']:.0%}"
        print(
            f"{row['sequences']:9}  {row['engine']:<18}{row['step_ms']:9.3f}{row['floor_ms']:10.3f}"
            f"{row['step_ms'] / row['floor_ms']:7.2f}{busy:>7}"
        )
    if arguments.out:
        report = {"command": shlex.join(["python", *sys.argv]), "machine": machine() | gpu(), "rows": rows}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--shape", choices=WIDTHS, default="8b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="in each round")
    parser.add_argument("--scratch", type=Path, help="folder with room for the base")
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    return parser.parse_args()


def gpu() -> dict[str, str]:
    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def write_base(folder: Path, config: LlamaConfig, dtype: torch.dtype, device: str) -> int:
    """Returns the bytes of the weights that a step reads: all but the embedding, of which it reads some rows."""
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    embedding = model.get_input_embeddings().weight
    return sum(p.nbytes for p in model.parameters()) - embedding.nbytes


def write_adapters(base: Path, store: Path, count: int) -> list[str]:
    """All on the same numbers, each with a scale of its own: a folder's name is the digest of what is in it."""
    model = LlamaForCausalLM.from_pretrained(base)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", init_lora_weights=False)
    first = store / "first"
    get_peft_model(model, config).save_pretrained(first)
    digests = []
    for index in range(count):
        made = store / "made"
        made.mkdir()
        os.link(first / WEIGHTS, made / WEIGHTS)
        fields = {**json.loads((first / CONFIG).read_text(encoding="utf-8")), "lora_alpha": RANK + index}
        (made / CONFIG).write_text(json.dumps(fields), encoding="utf-8")
        digests.append(content_digest(made) or "")
        made.rename(store / digests[-1])
    shutil.rmtree(first)
    return digests


class Floor:
    """The least seconds of a step."""

    def __init__(self, config: LlamaConfig, weights: int, dtype: torch.dtype, bandwidth: float) -> None:
        """weights: bytes of them that a step reads."""
        self._weights = weights
        self._bandwidth = bandwidth
        head = config.hidden_size // config.num_attention_heads
        kv = config.num_key_value_heads * head
        self._token = 2 * kv * dtype.itemsize * config.num_hidden_layers
        h, m = config.hidden_size, config.intermediate_size
        linears = [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]
        self._adapter = RANK * sum(map(sum, linears)) * dtype.itemsize * config.num_hidden_layers

    def __call__(self, tokens: int, adapters: int) -> float:
        """tokens: of context, of all sequences together."""
        return (self._weights + tokens * self._token + adapters * self._adapter) / self._bandwidth


def measure(
    arguments: argparse.Namespace, base: Path, store: Path, digests: Sequence[str], floor: Floor
) -> list[dict[str, Any]]:
    rows = []
    most = max(arguments.sequences)
    room = most * (arguments.context + 16 + arguments.steps * (arguments.rounds + 3))
    options: dict[str, Any] = {"device": arguments.device, "dtype": arguments.dtype, "max_running": most}
    options |= {"kv_cache_tokens": room, "prefix_caching": False, "max_loras": max(len(digests), 1)}
    engine = Engine(EngineConfig(model=str(base), store=store, **options))
    seconds: dict[tuple[int, str], list[float]] = {}
    busy: dict[tuple[int, str], float | None] = {}
    with tqdm(total=len(arguments.sequences) * len(MODES), unit="measurement") as progress:
        for sequences in arguments.sequences:
            for mode in MODES:
                if mode == "adapters unused":  # from here on they are on the device
                    run(engine, len(digests), digests, 8, 2, 0)
                used = digests[:sequences] if mode == "adapters" else []
                start(engine, sequences, used, arguments.context, arguments.steps * (arguments.rounds + 3))
                settle(engine, sequences)
                steps(engine, arguments.steps)
                seconds[sequences, mode] = [steps(engine, arguments.steps) for _ in range(arguments.rounds)]
                busy[sequences, mode] = busy_share(engine, arguments.steps) if arguments.device == "cuda" else None
                finish(engine, sequences)
                progress.update()
    for (sequences, mode), values in seconds.items():
        tokens = sequences * (arguments.context + arguments.steps * (arguments.rounds // 2 + 1))
        adapters = min(sequences, len(digests)) if mode == "adapters" else 0
        times = {"step_ms": statistics.median(values) * 1e3, "floor_ms": floor(tokens, adapters) * 1e3}
        row = {"sequences": sequences, "engine": mode, **times, "busy": busy[sequences, mode]}
        rows.append({**row, "rounds_ms": [value * 1e3 for value in values]})
    engine.close()
    return rows


def run(engine: Engine, sequences: int, digests: Sequence[str], context: int, tokens: int, seed: int) -> None:
    start(engine, sequences, digests, context, tokens, seed)
    while engine.has_work():
        step(engine)


def start(engine: Engine, sequences: int, digests: Sequence[str], context: int, tokens: int, seed: int = 1) -> None:
    """Sequence i has adapter i modulo their number."""
    random = Random(seed)
    for index in range(sequences):
        prompt = random.choices(range(3, engine.info.vocab_size), k=context)
        adapters = [AdapterPart(digests[index % len(digests)])] if digests else []
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        engine.add_request(
            AddRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling, adapters=adapters)
        )


def step(engine: Engine) -> set[str]:
    """The requests that it was for. A step that fails is no measurement."""
    outputs = engine.step()
    for output in outputs:
        if output.error:
            raise RuntimeError(output.error)
    return {output.request_id for output in outputs}


def settle(engine: Engine, sequences: int) -> None:
    """Until every prompt has run."""
    started: set[str] = set()
    while len(started) < sequences:
        started |= step(engine)


def steps(engine: Engine, count: int) -> float:
    """Seconds of one step, in the mean of so many that follow each other."""
    synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        step(engine)
    synchronize()
    return (time.perf_counter() - begin) / count


def busy_share(engine: Engine, count: int) -> float:
    """Of the time from the first kernel's start to the last one's end, how much some kernel runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(count):
            step(engine)
        synchronize()
    spans = sorted((e.time_range.start, e.time_range.end) for e in profile.events() if e.time_range.end > 0)
    end = spans[0][0]
    idle = 0.0
    for first, last in spans:
        idle += max(first - end, 0.0)
        end = max(end, last)
    return 1 - idle / (end - spans[0][0])


def finish(engine: Engine, sequences: int) -> None:
    for index in range(sequences):
        engine.abort(str(index))
    while engine.has_work():
        engine.step()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
