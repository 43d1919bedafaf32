"""The least time that the bypasses of a step can take, on this machine (see `benchmarks/kernels/cost.py`).

python -m benchmarks.kernels.floor [--device cpu|cuda] [--dtype bfloat16] [--shape llama-8b|smollm-135m]
"""

import argparse

import torch

from .problem import SHAPES
from .roofline import AdapterShare, least_work, measure_roofline

GB = 1e9

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
    print(f"{args.device}, {args.dtype}: {roofline.bandwidth / GB:.0f} GB/s, {roofline.peak / 1e12:.2f} TFLOP/s")
    print(f"{args.shape}: {'step':42}{'factors MB':>12}{'others MB':>11}{'GFLOP':>9}{'floor ms':>10}  bound by")
    for name, shares in STEPS.items():
        cost = least_work(shape.groups, shares, dtype)
        bound = "bytes" if cost.num_bytes / roofline.bandwidth >= cost.flops / roofline.peak else "FLOPs"
        print(
            f"{'':{len(args.shape)}}  {name:42}{cost.factors / 1e6:12.1f}{cost.activations / 1e6:11.1f}"
            f"{cost.flops / GB:9.1f}{roofline.seconds(cost) * 1e3:10.3f}  {bound}"
        )


if __name__ == "__main__":
    main()
