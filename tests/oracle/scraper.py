"""What the endpoint picker of a Kubernetes inference gateway makes of /metrics.

One bad line, and it knows nothing of a pod. It reads as Prometheus's own Go library reads the text format, which is
stricter than the Python client, and then picks one series of each of vLLM's five metrics. Only gauges and counters have
a value for it.
"""

import re
from dataclasses import dataclass, field

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL},?)*)\}})?[ \t]+(\S+)(?:[ \t]+(-?\d+))?")
_TYPES = ("counter", "gauge", "histogram", "summary", "untyped")
_PARTS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass
class Series:
    """One line: its labels, its value, and its time in ms if it has one."""

    labels: dict[str, str]
    value: float
    time: int = 0


@dataclass
class Family:
    """A metric with its series. type: None until a TYPE line."""

    type: str | None = None
    has_help: bool = False
    series: list[Series] = field(default_factory=list)


@dataclass(frozen=True)
class PodState:
    """What a picker knows of a pod. active: adapters that need no load; a picker sees room below `max_active`."""

    waiting: int
    running: int
    kv_usage: float
    active: frozenset[str]
    queued: frozenset[str]
    max_active: int
    block_size: int
    num_blocks: int


def families_of(text: str) -> dict[str, Family]:
    """Return the metrics of a scrape. Raises ValueError where the Go library would read none at all."""
    families: dict[str, Family] = {}
    if not text.endswith("\n"):
        raise ValueError("unexpected end of input: no newline at the end")
    for line in text.splitlines():
        if line.startswith("#"):
            _read_comment(line, families)
        elif line.strip():
            _read_sample(line, families)
    return families


def pod_state(text: str) -> PodState:
    """Return what a picker takes out of a scrape. Raises ValueError, KeyError where it would miss something."""
    families = families_of(text)
    queue, run, usage, cache = (
        _latest(families["vllm:" + name])
        for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc", "cache_config_info")
    )
    lora = max(families["vllm:lora_requests_info"].series, key=lambda one: one.value)  # the value is its time
    return PodState(
        int(queue.value),
        int(run.value),
        usage.value,
        _names(lora.labels["running_lora_adapters"]),
        _names(lora.labels["waiting_lora_adapters"]),
        int(lora.labels["max_lora"]),
        int(cache.labels["block_size"]),
        int(cache.labels["num_gpu_blocks"]),
    )


def lora_score(pod: PodState, adapter: str) -> float:
    """Return what the picker's scorer for adapters gives a pod for a request."""
    if adapter in pod.active:
        return 1.0
    if len(pod.active) + len(pod.queued) < pod.max_active:
        return 0.8
    return 0.6 if adapter in pod.queued else 0.0


def _read_comment(line: str, families: dict[str, Family]) -> None:
    match = re.fullmatch(rf"#[ \t]+(HELP|TYPE)[ \t]+({_NAME})(?:[ \t]+(.*))?", line)
    if match is None:
        return
    family = families.setdefault(match[2], Family())
    if match[1] == "HELP":
        if family.has_help:
            raise ValueError(f"second HELP line for metric name {match[2]!r}")
        family.has_help = True
    elif family.type is not None or family.series:
        raise ValueError(f"second TYPE line for metric name {match[2]!r}, or TYPE reported after samples")
    elif match[3] not in _TYPES:
        raise ValueError(f"unknown metric type {match[3]!r}")
    else:
        family.type = match[3]


def _read_sample(line: str, families: dict[str, Family]) -> None:
    match = _SAMPLE.fullmatch(line.rstrip())
    if match is None:
        raise ValueError(f"no sample: {line!r}")
    pairs = [
        (name, re.sub(r"\\.", lambda m: _ESCAPES[m[0]], value)) for name, value in re.findall(_LABEL, match[2] or "")
    ]
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"duplicate label names: {line!r}")
    series = Series(dict(pairs), float(match[5]), int(match[6] or 0))
    if "le" in series.labels:
        float(series.labels["le"])
    families.setdefault(_family_of(match[1], families), Family()).series.append(series)


def _unescaped(value: str) -> str:
    return re.sub(r"\\.", lambda match: _ESCAPES[match[0]], value)


def _family_of(name: str, families: dict[str, Family]) -> str:
    """Return the family of a sample: the histogram or summary that it is a part of, or its own name."""
    for kind, parts in _PARTS.items():
        for part in parts:
            family = families.get(name.removesuffix(part))
            if name.endswith(part) and family is not None and family.type == kind:
                return name.removesuffix(part)
    return name


def _latest(family: Family) -> Series:
    if family.type not in ("gauge", "counter"):
        raise ValueError(f"a picker has no value for a {family.type}")
    return max(family.series, key=lambda one: one.time)  # the first of those that are as late


def _names(listed: str) -> frozenset[str]:
    return frozenset(name.strip() for name in listed.split(",") if name.strip())
