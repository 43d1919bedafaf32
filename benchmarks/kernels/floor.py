"""The least time that the bypasses of a step can take on this machine, by `roofline.py`.

python -m benchmarks.kernels.floor [--device cpu|cuda] [--dtype bfloat16] [--shape llama-8b|smollm-135m]
"""

import argparse

import torch

from ..tables import Table
from .problem import SHAPES
from .roofline import AdapterShare, least_work, measure_roofline

FIGURES = Table(
    {"step": "<42", "factors MB": "12.1f", "others MB": "11.1f", "GFLOP": "9.1f", "floor ms": "10.3f"}
    | {"  bound by": "<10"}
)

STEPS: dict[str, list[AdapterShare]] = {
    "1 adapter, 1 token": [AdapterShare(16, 1)],
    "1 adapter, 64 tokens": [AdapterShare(16, 64)],
    "8 adapters, 8 tokens": [AdapterShare(16, 1)] * 8,
    "64 adapters, 64 tokens": [AdapterShare(16, 1)] * 64,
    "64 adapters of ranks 8 to 64, 64 tokens": [AdapterShare(rank, 1) for rank in (8, 16, 32, 64)] * 16,
    "1 adapter, 8192 tokens": [AdapterShare(16, 8192)],
    "8 adapters, 8192 tokens": [AdapterShare(16, 1024)] * 8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    args = parser.parse_args()
    dtype, shape = getattr(torch, args.dtype), SHAPES[args.shape]
    roofline = measure_roofline(args.device, dtype)
    print(f"{args.shape}, {args.device}, {args.dtype}: {roofline}")
    print(FIGURES.heading())
    for name, shares in STEPS.items():
        work = least_work(shape.groups, shares, dtype)
        bound = "bytes" if work.num_bytes / roofline.bandwidth >= work.flops / roofline.peak else "FLOPs"
        sizes = (work.factors / 1e6, work.activations / 1e6, work.flops / 1e9)
        print(FIGURES.line(name, *sizes, roofline.seconds(work) * 1e3, f"  {bound}"))


if __name__ == "__main__":
    main()
