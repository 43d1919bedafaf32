"""The entry of the engine's process: `python -m peftserve.server.engine DOOR CONFIG`.

Garbage is not collected while modules are imported: nothing of them is garbage, and to search it takes a seventh of the
time.
"""

import gc
import sys


def run() -> int:
    gc.disable()
    from .process import main

    gc.freeze()
    gc.enable()
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
