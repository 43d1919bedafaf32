"""The entry of another rank's process: `python -m peftserve.server.engine.parallel RANK PIPE MEETING CONFIG`."""

import signal
import sys


def run() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # are for the API process, which ends the first rank
        signal.signal(number, signal.SIG_IGN)
    from .rank import main  # not before: to import torch takes seconds

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
