"""The replicas of a server as one deployment of Ray Serve.

Serve places replicas, watches their health, starts others in place of those that end, and scales. No request goes
through it: neither its proxies nor its handles are used. Knows Ray; does not know what an engine says.
"""

import math
import os
from typing import TYPE_CHECKING, Any

from ...config import EngineConfig
from ...wire.launch import encode_config
from ..dialer import Target
from ..fleet import FleetError
from .options import RayOptions
from .replica import EngineReplica
from .scaling import POLICY

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION = "peftserve"
NAMESPACE = "peftserve"
OBJECT_STORE = 100 << 20  # bytes, near Ray's least: nothing large goes through it
REPORT_SECONDS, LOOK_BACK_SECONDS = 1.0, 10.0  # of pressures, and their mean
HEALTH_SECONDS, HEALTH_PATIENCE = 1.0, 10.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}


class RayFleet:
    """A deployment on a cluster, or on one that is begun here and ends with it."""

    def __init__(self, config: EngineConfig, options: RayOptions) -> None:
        self._config = config
        self._options = options
        self._is_open = False  # whether there is a cluster to leave

    def open(self) -> str:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import ray
            from ray import serve
        except ImportError:
            raise FleetError("Ray is not installed: pip install 'peftserve[ray]'") from None
        try:
            self._is_open = True
            ray.init(namespace=NAMESPACE, configure_logging=False, **self._cluster())
            serve.start(proxy_location="Disabled")
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise FleetError(f"Ray cannot be used: {error}") from None
        return "127.0.0.1" if self._options.address is None else str(ray.util.get_node_ip_address())

    def start(self, target: Target) -> None:
        from ray import serve

        try:
            serve.run(self._application(target), name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            raise FleetError(f"the replicas do not start: {error}") from None

    def close(self) -> None:
        if not self._is_open:
            return
        import ray
        from ray import serve

        if self._options.address is not None and ray.is_initialized():
            serve.delete(APPLICATION, _blocking=False)
        ray.shutdown()  # a cluster that was begun here ends with it

    def _cluster(self) -> dict[str, Any]:
        """Return the arguments of `ray.init` which say what cluster it is."""
        if self._options.address is not None:
            return {"address": self._options.address}
        # On one machine what replicas reserve is theirs to share: more of them than cores are slow, but run.
        cores = max(os.cpu_count() or 1, math.ceil(self._options.cpus * self._options.max_replicas))
        return {
            "address": "local",
            "num_cpus": cores,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
        }

    def _application(self, target: Target) -> "Application":
        from ray import serve

        deployment = serve.deployment(
            EngineReplica,
            name="engine",
            **self._number(),
            ray_actor_options={"num_cpus": self._options.cpus, "num_gpus": self._gpus()},
            # Of which replicas are told at their start. Serve replaces those of another start, one after the other.
            user_config={"host": target.host, "port": target.port, "secret": target.secret},
            health_check_period_s=HEALTH_SECONDS,
            health_check_timeout_s=HEALTH_PATIENCE,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=self._options.grace_period + HEALTH_PATIENCE,
        )
        return deployment.bind(encode_config(self._config), self._options.grace_period, self._options.engine_timeout)

    def _number(self) -> dict[str, Any]:
        """Return the arguments of a deployment that say how many replicas there are."""
        from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

        least, most = self._options.min_replicas, self._options.max_replicas
        if least == most:
            return {"num_replicas": least}
        config = AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            metrics_interval_s=REPORT_SECONDS,
            look_back_period_s=LOOK_BACK_SECONDS,
            upscale_delay_s=self._options.up_after,
            downscale_delay_s=self._options.down_after,
            policy=AutoscalingPolicy(policy_function=POLICY),
        )
        return {"autoscaling_config": config}

    def _gpus(self) -> float:
        import ray

        if self._options.gpus is not None:
            return self._options.gpus
        return 1.0 if self._config.device != "cpu" and ray.cluster_resources().get("GPU", 0) else 0.0
