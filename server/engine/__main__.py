"""`python -m peftserve.server.engine DOOR CONFIG`: the engine's process, which first loads what it needs.

Nothing that is imported is ever garbage: to search it again and again for some takes a seventh of the time.
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
