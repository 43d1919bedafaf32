"""What a run says: waits for the first token, where adapters were, what it cost."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .fleet import Fleet
from .replica import Request

DIGITS = 4


def report(fleet: Fleet, requests: Sequence[Request], warm: float) -> dict[str, Any]:
    """Return the figures of the requests after the first share of them, `warm`, in which memories fill.

    busy: replica seconds of a thousand requests. Times are in milliseconds, but `busy` and `seconds`.
    """
    counted = requests[int(len(requests) * warm) :]
    waits = np.array([one.first - one.arrival for one in counted]) * 1000
    tokens = np.array([(one.end - one.first) / max(one.output - 1, 1) for one in counted]) * 1000
    origins = Counter(one.origin or "device" for one in counted)
    loaded = sum((replica.loaded for replica in fleet.replicas), Counter[str]())
    busy = [replica.busy for replica in fleet.replicas]
    figures: dict[str, Any] = {f"ttft_p{part}": float(np.percentile(waits, part)) for part in (50, 90, 99)}
    figures |= {"ttft_mean": float(waits.mean()), "per_token_p50": float(np.percentile(tokens, 50))}
    figures |= {"per_token_p99": float(np.percentile(tokens, 99))}
    figures |= {f"from_{name}": origins[name] / len(counted) for name in ("device", "host", "disk", "afar")}
    figures["busy_per_1000"] = sum(busy) / len(requests) * 1000
    figures["gb_per_1000"] = sum(loaded.values()) / len(requests) / 1e6
    figures["afar_gb_per_1000"] = loaded["afar"] / len(requests) / 1e6
    figures["spread"] = max(busy) / (sum(busy) / len(busy))
    figures["seconds"] = max(one.end for one in requests) - requests[0].arrival
    return {name: round(value, DIGITS) for name, value in figures.items()}
