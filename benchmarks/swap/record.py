"""The swap benchmark on two models with random weights, in one JSON.

    python -m benchmarks.swap.record --out benchmarks/results/swap.json --serve '--num-threads 1'

`smollm`: first tokens, stalls and cycles on the SmolLM2-135M shape with adapters of 20 MB (rank 16 on all linears, in
float32). `small`: throughput over the number of registered adapters, on a shape whose own work hides little.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from ..machine import machine
from ..models.smollm import write_base
from .main import main as swap

SERVE = "--dtype float32 --adapter-memory 128MiB --kv-cache-tokens 16384"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("smollm", "small"), help="one of the two")
    parser.add_argument("--serve", default="", metavar="FLAGS", help="more flags for the servers, in one word")
    parser.add_argument("--smollm", default="--rounds 20", metavar="FLAGS", help="of `python -m benchmarks.swap`")
    parser.add_argument("--small", default="--rounds 9", metavar="FLAGS", help="of `python -m benchmarks.swap`")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the runs that are not repeated stay")
    arguments = parser.parse_args(words)
    made = json.loads(arguments.out.read_text()) if arguments.only and arguments.out.exists() else {}
    made |= {"command": shlex.join(["python", *sys.argv]), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for name, run in (("smollm", smollm), ("small", small)):
            if arguments.only in (None, name):
                flags = shlex.split(getattr(arguments, name))
                made[name] = run(Path(folder), [f"--serve={SERVE} {arguments.serve}", *flags])
                arguments.out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return 0


def smollm(folder: Path, flags: Sequence[str]) -> Any:
    base, adapter = folder / "smollm", folder / "r16"
    write_base(base)
    write_adapter(base, adapter, 16, "all-linear")
    return measured(folder, [str(base), "--adapter", str(adapter), "--measure", "first-token,stall,cycle", *flags])


def small(folder: Path, flags: Sequence[str]) -> Any:
    base, adapter = folder / "small", folder / "r4"
    write_small_base(base)
    write_adapter(base, adapter, 4, ["q_proj", "v_proj"])
    return measured(folder, [str(base), "--adapter", str(adapter), "--measure", "registered", *flags])


def measured(folder: Path, words: Sequence[str]) -> Any:
    """Return the benchmark's JSON. Raises SystemExit if it fails."""
    out = folder / "out.json"
    if swap([*words, "--out", str(out)]):
        raise SystemExit(1)
    made = json.loads(out.read_text())
    del made["command"]  # this script's own says more
    return made


def write_small_base(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_adapter(base: Path, folder: Path, rank: int, targets: str | list[str]) -> None:
    """Write a LoRA with random weights in float32."""
    torch.manual_seed(1)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), config).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
