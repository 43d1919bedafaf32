"""The memory of each rank beside that of one process: the weights that it holds, and what the system counts for it.

python -m benchmarks.parallel.memory --models llama mixtral --ranks 1 2 4
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine

from .setting import oracle

WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MEBIBYTE = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--models", nargs="+", default=["llama", "mixtral"])
    options = parser.parse_args()
    kit = oracle()
    for architecture in options.models:
        with tempfile.TemporaryDirectory() as name:
            model = kit.tiny_model(architecture, 1, Path(name) / "base", **WIDE)
            for ranks in options.ranks:
                _measure(architecture, model, ranks)
    return 0


def _measure(architecture: str, model: Path, ranks: int) -> None:
    """Start an engine with next to no cache and adapters, and print what is left: the base."""
    config = EngineConfig(
        model=str(model),
        device="cpu",
        dtype="float32",
        tensor_parallel_size=ranks,
        num_threads=1,
        adapter_memory=MEBIBYTE,
        kv_cache_tokens=64,
        max_batch_tokens=64,
        max_running=4,
    )
    engine = Engine(config)
    try:
        held = [_held(pid) for pid in (os.getpid(), *engine.rank_pids)]
        weights, packed = engine.memory.base / MEBIBYTE, engine.memory.packed / MEBIBYTE
        print(f"{architecture}, {ranks} ranks: weights {weights:.1f} MiB each, packed {packed:.1f}; {held}", flush=True)
    finally:
        engine.close()


def _held(pid: int) -> str:
    """Return what Linux counts for a process: anonymous pages, and those of files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    own, of_files = (int(fields[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile"))
    return f"{own} MiB + {of_files} of files"


if __name__ == "__main__":
    sys.exit(main())
