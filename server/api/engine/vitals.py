"""What Linux says of another process. Knows /proc; elsewhere nothing is known."""

import os
from pathlib import Path

from .pulse import Vitals

_STATE, _USER, _SYSTEM = 0, 11, 12  # fields of /proc/PID/stat behind the name; see proc_pid_stat(5)
_STOPPED = "T"


def vitals_of(pid: int) -> Vitals | None:
    """Return what the system says of a process; None where it has ended, or the system says nothing."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name may have anything in it
    ticks = int(fields[_USER]) + int(fields[_SYSTEM])
    return Vitals(ticks / os.sysconf("SC_CLK_TCK"), fields[_STATE] == _STOPPED)
