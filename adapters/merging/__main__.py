"""The process of one merge: an order on standard input, progress on standard output, one line of JSON each.

It lets everything else on the machine go first, the system's search for memory excepted, and ends as soon as its
standard input does: with the server, or when the merge is cancelled.
"""

import contextlib
import os
import sys
import threading
from pathlib import Path

import msgspec

from ..errors import AdapterError
from ..staging import translate_disk_errors
from .messages import MergeDone, MergeFailed, MergeMessage, MergeOrder, MergeProgress
from .plan import plan_merge

NICENESS = 10
FAILED, ABANDONED = 1, 2


def main() -> int:
    _go_last()
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=MergeOrder)
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        _merge(order)
    except AdapterError as error:
        _tell(MergeFailed(type(error).__name__, error.message, error.param))
        return FAILED
    _tell(MergeDone())
    return 0


def _merge(order: MergeOrder) -> None:
    plan = plan_merge(order.sources, order.options)
    import torch  # takes seconds, and is not needed to refuse

    from .run import run_merge

    torch.set_num_threads(1)  # sums in another order would be other bytes
    with translate_disk_errors():
        run_merge(plan, Path(order.folder), lambda done, total: _tell(MergeProgress(done, total)))


def _tell(message: MergeMessage) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _go_last() -> None:
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # where there is no such file, or it may not be written
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_input() -> None:
    # Not through `sys.stdin`, whose lock the interpreter wants when it ends.
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 16):
            pass
    os._exit(ABANDONED)


if __name__ == "__main__":
    sys.exit(main())
