"""Replicas on this machine, without Ray: each an engine of `fake_engine_process.py` and what dials for it.

Run as `python local_fleet.py DOOR CONFIG`, it is the process that deals sequences out, over two replicas. The model's
name chooses what goes wrong with their engines; `nowhere` has no place for replicas.
"""

import asyncio
import itertools
import os
import signal
import socket
import sys
from pathlib import Path

from peftserve.server.api.engine.interface import EngineDead
from peftserve.server.api.engine.launched import LaunchedEngine
from peftserve.server.config import EngineConfig
from peftserve.server.deploy.dialer import Dialer
from peftserve.server.deploy.fleet import FleetError
from peftserve.server.deploy.process import deal_out
from peftserve.server.wire.launch import encode_config, exit_with_parent, parse_engine_arguments

PATIENCE = 60.0  # seconds; a busy machine takes 20 for a start
ENGINE = Path(__file__).parents[1] / "api" / "fake_engine_process.py"


def engine_command(door, config):
    return [sys.executable, str(ENGINE), str(door), encode_config(config)]


class LocalReplica:
    """An engine, and what dials for it."""

    def __init__(self, name, model):
        self.name = name
        self.engine = LaunchedEngine(EngineConfig(model=model), engine_command)
        self.dialer = Dialer(name, self.engine.admit)
        self._end = None

    async def start(self, target):
        await self.engine.start()
        self._end = asyncio.create_task(self._close_with_engine())
        self.dialer.dial(target)

    def signal(self, number):
        os.kill(self.engine._process.pid, number)

    async def kill(self):
        self.signal(signal.SIGKILL)
        await self.engine.over()

    async def close(self):
        self.dialer.close()
        await self.engine.shutdown()

    async def _close_with_engine(self):
        await self.engine.over()
        self.dialer.close()


class LocalFleet:
    """Replicas of this event loop. target: where they dial, once they are started."""

    def __init__(self, num_replicas, model):
        self.replicas = {}
        self.target = None
        self._loop = asyncio.get_running_loop()
        self._model = model
        self._num_replicas = num_replicas
        self._names = (f"replica-{i}" for i in itertools.count())

    def open(self):
        if self._model == "nowhere":
            raise FleetError("there is no place for replicas")
        return "127.0.0.1"

    def start(self, target):
        self.target = target
        try:
            for _ in range(self._num_replicas):
                asyncio.run_coroutine_threadsafe(self.add(), self._loop).result(PATIENCE)
        except EngineDead as error:
            raise FleetError(str(error)) from None

    def close(self):
        for replica in self.replicas.values():
            asyncio.run_coroutine_threadsafe(replica.close(), self._loop).result(PATIENCE)

    async def add(self):
        name = next(self._names)
        replica = self.replicas[name] = LocalReplica(name, self._model)
        await replica.start(self.target)
        return replica


async def main():
    door, config = parse_engine_arguments(sys.argv[1:])
    exit_with_parent()
    return await deal_out(socket.socket(fileno=door), LocalFleet(2, config.model))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
