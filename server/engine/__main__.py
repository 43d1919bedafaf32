"""The entry of the engine's process: `python -m peftserve.server.engine DOOR CONFIG`.

Garbage is not collected while modules are imported: nothing of them is garbage, and to search it takes a seventh of the
time.
"""

import gc
import signal
import sys


def run() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # are for the API process, which drains and then says Shutdown
        signal.signal(number, signal.SIG_IGN)
    gc.disable()
    from .process import main

    gc.freeze()
    gc.enable()
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
