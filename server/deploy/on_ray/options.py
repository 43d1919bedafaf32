"""What a deployment on Ray is asked to be."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ...config import EngineConfig
from ...wire.launch import encode_config

MODULE = "peftserve.server.deploy.on_ray"


@dataclass(frozen=True)
class RayOptions:
    """min_replicas, max_replicas: the same number where it is fixed. address: of a cluster; None begins one here.

    cpus, gpus: what one replica reserves; None for one GPU where the cluster has any.
    up_after, down_after: seconds for which another number has to be wanted before there are more, or fewer.
    grace_period: seconds for which a replica that is to go may end what it runs.
    engine_timeout: seconds without a sign of life after which its engine is taken for hung; 0: never.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None
    up_after: float = 10.0
    down_after: float = 600.0
    grace_period: float = 25.0
    engine_timeout: float = 60.0


def command_maker(options: RayOptions) -> Callable[[int, EngineConfig], list[str]]:
    """Return what makes the command of the process that deals out sequences, to be started as an engine is."""
    said = msgspec.json.encode(options).decode()

    def make(door: int, config: EngineConfig) -> list[str]:
        return [sys.executable, "-m", MODULE, str(door), encode_config(config), said]

    return make


def parse_options(text: str) -> RayOptions:
    """Return what `command_maker` wrote. Raises ValueError for any other text."""
    return msgspec.json.decode(text, type=RayOptions)
