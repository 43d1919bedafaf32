"""Traces through HTTP on the base of `decode_step.py`, with 64 adapters: a full batch, and S-LoRA's arrivals.

    python -m benchmarks.serving.serve --device cuda --out FILE.jsonl

One server for all of them, on a port of this machine; each trace's figures are printed and written when it has ended.
The same clients, traces and figures as `peftserve bench serve`.
"""

import argparse
import os
import shutil
import sys
import tempfile
import tomllib
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from peftserve.server.cli.load import options
from peftserve.server.cli.load.generator import Target
from peftserve.server.cli.load.report import readable

from ..checkouts import ROOT
from ..models.llama import make_config, scratch_folder, write_adapters, write_base
from ..records import append
from ..server_process import free_port, running
from .compare import measured, warm
from .presets import PRESETS, Models, Preset

PATIENCE = 90.0  # seconds for the server to be ready
SERVER = (
    "{python} -m peftserve.server.cli.main serve {base} --served-model-name base --port {port} "
    "--state-dir {scratch}/state --device {device} --dtype {dtype} --max-loras {count} --adapter-memory 4GiB "
    "--host-adapter-memory 8GiB --kv-cache-tokens {tokens} --max-batch-tokens {budget} {adapters}"
)
FULL = {"num_requests": 512, "concurrency": 64, "prompt_tokens": "512", "output_tokens": "128"}
TRACES: Mapping[str, Mapping[str, Any]] = {
    "64 at a time, the base": {**FULL, "models": "base"},
    "64 at a time, 64 adapters": FULL,
    "S-LoRA, 40 requests a second": {"workload": "s-lora", "rate": 40.0, "duration": 10.0, "alpha": 0.6},
}
SMALL = {
    "num_requests": 8,
    "concurrency": 4,
    "prompt_tokens": "16",
    "output_tokens": "4",
    "duration": 1.0,
    "rate": 4.0,
}
SIZES = {
    "8b": {"adapters": 64, "tokens": 131072, "budget": 8192},
    "tiny": {"adapters": 2, "tokens": 8192, "budget": 256},
}


def main() -> int:
    arguments = parse_arguments()
    shape, layers = ("tiny", 2) if arguments.rehearsal else ("8b", arguments.layers)
    sizes = SIZES[shape]
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        scratch, dtype = Path(folder), "float32" if arguments.device == "cpu" else "bfloat16"
        base, store = scratch / "base", scratch / "store"
        write_base(base, make_config(shape, layers), getattr(torch, dtype), arguments.device)
        folders = {f"ad{i}": store / digest for i, digest in enumerate(write_adapters(base, store, sizes["adapters"]))}
        if arguments.device == "cuda":
            torch.cuda.empty_cache()  # the memory is the server's
        preset = make_preset(arguments.device, sizes)
        return serve(preset, Models(base, folders, scratch, dtype), arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rehearsal", action="store_true", help="a tiny base, and a few short requests")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the server's log there")
    parser.add_argument("--out", type=Path, help="also append the figures, as lines of JSON")
    return parser.parse_args()


def make_preset(device: str, sizes: Mapping[str, int]) -> Preset:
    """Return this checkout's server, run by this Python, with sizes filled in."""
    given = {"{python}": sys.executable, "{device}": device, "{count}": str(sizes["adapters"])}
    given |= {"{tokens}": str(sizes["tokens"]), "{budget}": str(sizes["budget"])}
    command = SERVER
    for name, value in given.items():
        command = command.replace(name, value)
    return replace(PRESETS["peftserve"], command=command)


def serve(preset: Preset, models: Models, arguments: argparse.Namespace) -> int:
    """Serve all traces; return 1 if any request failed."""
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", (arguments.logs or models.scratch) / "server.log"
    environment = with_metadata(preset.environment(None), models.scratch)
    failed = 0
    with running(preset.words(models, port), url, preset.health, log, PATIENCE, environment):
        warm(list(models.adapters), Target(url), log)
        for name, settings in TRACES.items():
            load = make_load(settings, models, small=arguments.rehearsal)
            report = measured(load, Target(url))
            append(arguments.out, part="serve", kind="trace", trace=name, **report)
            print(name, readable({**report, "models": {}}), sep="\n", flush=True)
            failed += report["all"]["failed"]
    return int(failed > 0)


def make_load(settings: Mapping[str, Any], models: Models, *, small: bool) -> options.Load:
    """Return the load of a trace. small: for a rehearsal."""
    chosen = {"models": ",".join(models.adapters), **settings}
    if small:
        chosen |= {name: SMALL[name] for name in SMALL if name in chosen}
    if small and "workload" in chosen:
        chosen |= {name: SMALL[name] for name in ("prompt_tokens", "output_tokens")}
    return options.load(Namespace(**chosen))


def with_metadata(environment: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Return an environment in which the package has a version, also in a checkout that is not installed."""
    try:
        version("peftserve")
    except PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        folder = scratch / "metadata" / f"peftserve-{project['version']}.dist-info"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: peftserve\nVersion: {project['version']}\n")
        paths = [str(folder.parent), *filter(None, [environment.get("PYTHONPATH")])]
        return {**environment, "PYTHONPATH": os.pathsep.join(paths)}
    return dict(environment)


if __name__ == "__main__":
    sys.exit(main())
