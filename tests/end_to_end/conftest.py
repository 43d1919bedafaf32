"""A tiny Llama with eight adapters and PEFT's answers, and real servers over it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@dataclass
class World:
    """A model, its adapters, PEFT's answers. Tests upload an adapter under the name of its folder."""

    oracle: ModuleType
    model: Path
    adapters: list[Path]
    reference: Any

    def connect(self, server: Any) -> Any:
        """Return a context manager that gives an `oracle.Client`."""
        return self.oracle.Client.connect(server.url)


@pytest.fixture(scope="session")
def world(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    model = oracle.tiny_model("llama", 1, folder / "tiny")
    adapters = oracle.varied_adapters(model, folder / "adapters", seed=50)
    return World(oracle, model, adapters, oracle.PeftOracle(model))


@pytest.fixture
def serve(world: World, device: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start servers, one after the other, on one state folder, with the flags given; stop them in the end.

    A server serves the world's model, unless it is given another folder.
    """
    servers: list[Any] = []

    def start_one(*flags: str, model: Path = world.model) -> Any:
        log = tmp_path / f"server-{len(servers)}.log"
        start = world.oracle.RunningServer.start
        servers.append(start(model, tmp_path / "state", log, "--device", device, *flags))
        return servers[-1]

    yield start_one
    for server in servers:
        server.stop()
