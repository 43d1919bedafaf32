"""What a base and its adapters take of memory, beside what the server's own block says of it.

    python -m benchmarks.engine.memory [--quantization bnb-4bit] [--dtype bfloat16] [--adapters 8] [--out FILE.jsonl]

The SmolLM2-135M shape with random weights on a CPU, LoRAs of one rank on all linears, and one request for each of them.
Pages and the arena are as large as that needs, so that all of them have been written to. Two things are measured:

    tensors  the storages of all tensors that Python knows, each once
    process  by how much resident memory has grown since an engine of two small layers was closed, which has imported
             and started all that this one needs
"""

import argparse
import gc
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.memory import give_back_free_memory
from peftserve.server.engine.memory_report import storage_bytes
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

from .. import records
from ..machine import machine_of
from ..models.llama import RANK, linears_of, write_adapters
from ..models.smollm import write_base
from ..tables import Table

PROMPT, NEW = 110, 4
TOKENS = 128  # of pages for each request
MIB = 1 << 20
FIGURES = Table({"": "<12", "base": "9.1f", "kv": "9.1f", "adapters": "9.1f", "said": "9.1f", "of it": "9.3f"})


def tensors_alive() -> Iterator[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated names that are looked up in modules
        for thing in gc.get_objects():
            if isinstance(thing, torch.Tensor):
                yield thing


def resident_bytes() -> int:
    """Return this process's resident memory, with what the C library keeps for later given back."""
    gc.collect()
    give_back_free_memory()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) << 10


def start(folder: Path, arguments: argparse.Namespace, arena: int) -> Engine:
    return Engine(
        EngineConfig(
            model=str(folder / "base"),
            store=folder / "store",
            device="cpu",
            dtype=arguments.dtype,
            quantization=arguments.quantization,
            kv_cache_tokens=arguments.adapters * TOKENS,
            adapter_memory=arena,
            max_loras=arguments.adapters,
            max_lora_rank=RANK,
            max_running=arguments.adapters,
        )
    )


def answer(engine: Engine, digests: list[str]) -> None:
    """Answer one request for each adapter, whose tokens fill the pages."""
    sampling = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True)
    for index, digest in enumerate(digests):
        prompt = [(7 * index + 3 * i) % 64 for i in range(PROMPT)]
        engine.add_request(
            AddRequest(
                request_id=digest,
                prompt_token_ids=prompt,
                sampling=sampling,
                adapters=[WeightedAdapter(digest)],
            )
        )
    while engine.has_work():
        for output in engine.step():
            assert output.error is None, output.error


def adapter_bytes(base: Path, dtype: torch.dtype) -> int:
    config = LlamaConfig.from_pretrained(base)
    widths = sum(inputs + outputs for inputs, outputs in linears_of(config).values())
    return config.num_hidden_layers * widths * RANK * dtype.itemsize


def run(folder: Path, arguments: argparse.Namespace) -> tuple[Engine, dict[str, float]]:
    """Start an engine, let all adapters answer, and return it with the sizes that its block says, in MiB."""
    digests = write_adapters(folder / "base", folder / "store", arguments.adapters)
    dtype = getattr(torch, arguments.dtype)
    # A twentieth more than the numbers: parts of a blob begin at multiples of some bytes.
    engine = start(folder, arguments, int(1.05 * arguments.adapters * adapter_bytes(folder / "base", dtype)))
    for digest in digests:
        engine.inspect_adapter(digest, folder / "store" / digest)
        engine.load_adapter(digest)
    answer(engine, digests)
    said, stats = engine.memory, engine.stats()
    sizes = {
        "base": said.base + said.packed,
        "kv": said.kv + said.copied,
        "adapters": said.arena + stats.host_adapter_bytes,
    }
    return engine, {name: size / MIB for name, size in sizes.items()}


def warm_up(folder: Path, arguments: argparse.Namespace) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    run(folder, arguments)[0].close()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm_up(folder / "small", arguments)
        write_base(folder / "base")
        resident, tensors = resident_bytes(), storage_bytes(tensors_alive())
        engine, said = run(folder, arguments)
        grown = (resident_bytes() - resident) / MIB
        held = (storage_bytes(tensors_alive()) - tensors) / MIB
        engine.close()
    total = sum(said.values())
    measured = {"said": total, "tensors": held, "process": grown}
    return said | measured | {"tensors_of_said": held / total, "process_of_said": grown / total}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", default="bnb-4bit", help="form of the base; empty: as it is")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--out", type=Path, help="append the figures to this file, as a line of JSON")
    parsed = parser.parse_args(arguments)
    parsed.quantization = parsed.quantization or None
    return parsed


def main() -> int:
    arguments = parse(sys.argv[1:])
    found = measure(arguments)
    setting = {name: getattr(arguments, name) for name in ("quantization", "dtype")}
    records.append(arguments.out, **setting, loras=arguments.adapters, mib=found, **machine_of("cpu"))
    print(FIGURES.heading())
    said = [found[name] for name in ("base", "kv", "adapters")]
    print(FIGURES.line("said, MiB", *said, found["said"], 1.0))
    for name in ("tensors", "process"):
        print(FIGURES.line(name, None, None, None, found[name], found[f"{name}_of_said"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
