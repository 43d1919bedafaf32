"""The measurements as tables."""

from collections.abc import Callable, Mapping
from typing import Any

from ..tables import aligned

_SHOWN = ("mean", "p50", "p90", "p99")
_TIERS = {
    "device": "on the device",
    "host": "on the host",
    "disk": "on disk",
    "restarted": "on disk, after a restart",
    "after_upload": "just uploaded",
    "upload": "(the upload itself)",
}
_KINDS = {
    "quiet": "nothing else",
    "warm": "requests for one that is there",
    "load": "requests for ones to load",
    "upload": "uploads",
}


def readable(made: Mapping[str, Any]) -> str:
    """Return a table of each measurement."""
    return "\n\n".join(table(made[name]) for name, table in _TABLES.items() if name in made)


def _first_token(made: Mapping[str, Any]) -> str:
    rows = [
        [text, *_numbers(made[kind]), _extra(made["extra_ms"].get(kind))] for kind, text in _TIERS.items() if made[kind]
    ]
    return aligned(["first token (ms)", *_SHOWN, "extra"], rows)


def _stall(made: Mapping[str, Any]) -> str:
    ratios = [("over_quiet", share) for share in ("p50", "p99")] + [("over_warm", share) for share in ("p50", "p99")]
    rows = [
        [text, *_numbers(made[kind]), *(_ratio(made[over].get(kind, {}).get(share)) for over, share in ratios)]
        for kind, text in _KINDS.items()
        if made[kind]
    ]
    columns = [f"{over.removeprefix('over_')} {share}" for over, share in ratios]
    return aligned(["between tokens of others (ms)", *_SHOWN, *(f"/{column}" for column in columns)], rows)


def _cycle(made: Mapping[str, Any]) -> str:
    rows = [
        [
            f"from {'disk' if tier == 'disk' else 'the host'}",
            f"{there['loads_per_second']:.1f}",
            f"{there['requests_per_second']:.1f}",
            str(there["loads"]),
            str(there["adapters"]),
        ]
        for tier, there in made.items()
    ]
    return aligned(["round-robin", "loads/s", "requests/s", "loads", "adapters"], rows)


def _registered(made: Mapping[str, Any]) -> str:
    rows = [
        [number, f"{there['registered_per_second']:.0f}", *_load(there["hot"]), *_load(there["power"])]
        for number, there in made.items()
    ]
    columns = [f"{load} {name}" for load in ("hot", "power") for name in ("tok/s", "ratio", "CPU", "ratio", "hits")]
    return aligned(["registered", "uploads/s", *columns], rows)


def _load(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{found['tokens_per_second']:.0f}",
        _ratio(found["over_baseline"]),
        f"{found['cpu_ms_per_token']:.2f}",
        _ratio(found["cpu_over_baseline"]),
        f"{100 * found['hit_rate']:.0f}%",
    ]


def _numbers(found: Mapping[str, float]) -> list[str]:
    return [f"{found[name]:.1f}" for name in _SHOWN]


def _extra(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:+.1f}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


_TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "first_token": _first_token,
    "stall": _stall,
    "cycle": _cycle,
    "registered": _registered,
}
