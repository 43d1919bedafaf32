"""The number of replicas as Ray Serve asks for it: a policy over what replicas report.

Serve runs it in its controller, on any machine.
"""

from typing import Any

from ..scaling import Pressure, replicas_for

POLICY = f"{__name__}:by_pressure"
SEQUENCES, PLACES, EVICTIONS = "sequences", "places", "evictions"


def report(pressure: Pressure) -> dict[str, float]:
    """Return what a replica reports: Serve knows numbers by names."""
    return {SEQUENCES: pressure.sequences, PLACES: pressure.places, EVICTIONS: pressure.evictions}


def by_pressure(context: Any) -> tuple[int, dict[str, Any]]:
    """Return the number of replicas, and nothing that is to be kept. context: Serve's AutoscalingContext."""
    told = context.aggregated_metrics or {}
    replicas = told.get(SEQUENCES, {})
    pressures = [
        Pressure(replicas[replica], places, told.get(EVICTIONS, {}).get(replica, 0.0))
        for replica, places in told.get(PLACES, {}).items()
        if replica in replicas
    ]
    if not pressures:  # they are starting
        return context.target_num_replicas, {}
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return replicas_for(pressures, least, most), {}
