"""What `peftserve doctor` looks at, and what it finds."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # it knows torch
    from ..diagnosis.machine import Machine

GOOD, SLOW, FATAL = "ok", "slow", "fatal"
MARKS = {GOOD: "ok", SLOW: "slow", FATAL: "FATAL"}


class Finding(NamedTuple):
    """level: GOOD, SLOW for what works and could be faster, or FATAL for what keeps a server from starting."""

    level: str
    topic: str
    text: str


@dataclass(frozen=True)
class Subject:
    """A server that is to be started."""

    model: str
    machine: "Machine"
    state_dir: Path
    host: str
    port: int
