"""The entry of the process: `python -m peftserve.server.deploy.on_ray DOOR CONFIG OPTIONS`."""

import signal
import socket
import sys

import uvloop

from ...logs import set_up_logging
from ...wire.launch import exit_with_parent, parse_engine_arguments
from ..process import deal_out
from .fleet import RayFleet
from .options import parse_options


def run() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # are for the API process, which drains and then says Shutdown
        # A function, not SIG_IGN, which Ray's own processes would inherit.
        signal.signal(number, lambda *_: None)
    door, config = parse_engine_arguments(sys.argv[1:3])
    set_up_logging(config.log_level)
    exit_with_parent()
    fleet = RayFleet(config, parse_options(sys.argv[3]))
    return uvloop.run(deal_out(socket.socket(fileno=door), fleet))


if __name__ == "__main__":
    sys.exit(run())
