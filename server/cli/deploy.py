"""The command `peftserve deploy`: the server as `peftserve serve` runs it, with several engines in place of one."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from ..config import ServerConfig
from ..deploy.on_ray.options import RayOptions, command_maker
from . import resolution
from .errors import CommandError
from .model_check import check_model
from .parser import checked
from .serve import make_config
from .values import finite, seconds, whole

OWN = {
    *("replicas", "min_replicas", "max_replicas", "upscale_delay", "downscale_delay"),
    *("ray_address", "cpus_per_replica", "gpus_per_replica"),
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("deploy", help="serve a base model by several engines")
    places = parser.add_subparsers(title="places", required=True, metavar="PLACE")
    ray = places.add_parser(
        "ray",
        help="by replicas on Ray Serve",
        description="Serve MODEL as `peftserve serve` does, with the same flags, by replicas on Ray Serve: each is an "
        "engine with the whole model. Adapters, routes and keys are this server's; requests go where their adapters "
        "are in memory.",
    )
    _add_own(ray)
    resolution.add_arguments(ray)
    ray.set_defaults(run=run)


def _add_own(parser: argparse.ArgumentParser) -> None:
    count, share = checked(whole(1)), checked(_share)
    parser.add_argument("--replicas", metavar="N", type=count, help="engines (default: 1)")
    parser.add_argument(
        "--min-replicas", metavar="N", type=count, help="fewest engines, where their number follows load"
    )
    parser.add_argument("--max-replicas", metavar="N", type=count, help="most engines then")
    wait = checked(seconds)
    parser.add_argument("--upscale-delay", metavar="SECONDS", type=wait, default=10.0, help="of load (default: 10)")
    parser.add_argument("--downscale-delay", metavar="SECONDS", type=wait, default=600.0, help="(default: 600)")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="a cluster, or `auto` (default: one on this machine)")
    parser.add_argument("--cpus-per-replica", metavar="C", type=share, default=1.0, help="reserved in Ray (default: 1)")
    parser.add_argument(
        "--gpus-per-replica", metavar="G", type=share, help="reserved in Ray (default: 1 where there are any, else 0)"
    )


def run(arguments: argparse.Namespace) -> int:
    flags = {name: value for name, value in vars(arguments).items() if name not in OWN}
    config = make_config(resolution.resolve(flags, os.environ), os.environ)
    options = make_options(vars(arguments), config)
    if find_spec("ray") is None:
        raise CommandError("deploy ray: Ray is not installed: pip install 'peftserve[ray]'")
    check_model(config.engine.model)
    from ..api.serve import run as run_server  # late: `--help` and a mistake in a flag need no server

    return run_server(with_room(config, options), command_maker(options))


def make_options(chosen: Mapping[str, Any], config: ServerConfig) -> RayOptions:
    """Return what is asked of Ray. Raises CommandError for numbers that contradict each other."""
    fixed, least, most = chosen["replicas"], chosen["min_replicas"], chosen["max_replicas"]
    if fixed is not None and (least, most) != (None, None):
        raise CommandError("--replicas is a fixed number: leave it out, or --min-replicas and --max-replicas")
    if most is not None and most < (least or 1):
        raise CommandError(f"--max-replicas: {most} is less than --min-replicas {least}")
    if least is not None and most is None:
        raise CommandError("--min-replicas takes --max-replicas beside it; a fixed number is --replicas")
    return RayOptions(
        min_replicas=fixed or least or 1,
        max_replicas=fixed or most or 1,
        address=chosen["ray_address"],
        cpus=chosen["cpus_per_replica"],
        gpus=chosen["gpus_per_replica"],
        up_after=chosen["upscale_delay"],
        down_after=chosen["downscale_delay"],
        grace_period=config.grace_period,
        engine_timeout=config.engine_timeout,
    )


def with_room(config: ServerConfig, options: RayOptions) -> ServerConfig:
    """Return the configuration with places for what all replicas run beside each other, and not one."""
    more = (options.max_replicas - 1) * config.engine.max_running
    return replace(config, max_queue=config.max_queue + more)


def _share(text: str) -> float:
    share = finite(text)
    if share < 0:
        raise ValueError("is not 0 or more")
    return share
