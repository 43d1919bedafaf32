"""A replica: an actor of Ray Serve with one engine process, which dials the process that deals out sequences.

Knows how Serve treats a deployment's class; does not import Ray but to ask for its own name.
"""

import asyncio
import logging
import time
from typing import Any

from ...api.engine.interface import EngineDead
from ...api.engine.launched import LaunchedEngine
from ...config import EngineConfig
from ...logs import set_up_logging
from ...wire.launch import decode_config
from ..dialer import Dialer, Target
from ..scaling import Pressure
from .scaling import report

logger = logging.getLogger(__name__)

MIN_PASSED = 0.1  # seconds between two counts, for a rate


class EngineReplica:
    """One engine. Serve makes it, calls its methods by their names, and takes another one's place when it is unwell."""

    def __init__(self, config: str, grace_period: float, engine_timeout: float) -> None:
        self._config = decode_config(config, EngineConfig)
        self._grace_period = grace_period
        set_up_logging(self._config.log_level)
        self._engine = LaunchedEngine(self._config, patience=engine_timeout)
        self._counted = (0, time.monotonic())  # evictions, and when they were counted last
        self._dialer: Dialer | None = None  # set when the engine has loaded its model
        self._end: asyncio.Task[None] | None = None  # set with it

    async def reconfigure(self, target: dict[str, Any]) -> None:
        """Dial `target`: at the start, for which Serve waits, and when it has moved. Raises RuntimeError."""
        if self._dialer is None:
            self._dialer = await self._start()
        self._dialer.dial(Target(**target))

    async def _start(self) -> Dialer:
        from ray import serve

        try:
            await self._engine.start()
        except (EngineDead, OSError) as error:
            await self._engine.shutdown()
            raise RuntimeError(str(error)) from None
        dialer = Dialer(serve.get_replica_context().replica_id.unique_id, self._engine.admit)
        self._end = asyncio.create_task(self._close_with_engine(dialer), name="engine-end")
        return dialer

    def check_health(self) -> None:
        """Raise where another replica has to take the place of this one."""
        if not self._engine.alive:
            raise RuntimeError("the engine has ended")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what the policy of the number of replicas goes by. Serve asks every few seconds where it varies."""
        stats, now = self._engine.stats, time.monotonic()
        (evictions, then), self._counted = self._counted, (stats.adapter_evictions, now)
        passed = max(now - then, MIN_PASSED)
        pressure = Pressure(
            sequences=stats.num_running + stats.num_waiting,
            places=self._config.max_running,
            evictions=max(0, stats.adapter_evictions - evictions) / passed,
        )
        return report(pressure)

    async def __call__(self) -> str:
        """Answer who asks through Serve, which nobody has to: sequences come another way."""
        return "ok"

    async def __del__(self) -> None:
        """End, once what runs has ended, or the grace time has."""
        if self._dialer is not None:
            await asyncio.to_thread(self._dialer.take_leave, self._grace_period)
            self._dialer.close()
        await self._engine.shutdown()

    async def _close_with_engine(self, dialer: Dialer) -> None:
        await self._engine.over()
        dialer.close()
