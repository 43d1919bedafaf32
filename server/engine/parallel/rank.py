"""Another rank's process: makes its part of the model, and then follows the first rank."""

import logging
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from ...config import EngineConfig
from ...logs import set_up_logging
from ...wire.launch import decode_config, exit_with_parent
from ..machine import make_machine
from ..model.errors import UnservableModel
from .follower import Follower
from .place import Place

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run a rank. Returns exit status 0 after `Stop`, or where the first rank is gone; 1 if it failed."""
    rank, pipe, meeting, text = arguments
    config = decode_config(text, EngineConfig)
    set_up_logging(config.log_level)
    exit_with_parent()
    try:
        machine = make_machine(config, Place(int(rank), config.tensor_parallel_size, Path(meeting)))
        Follower(machine.runner, machine.adapters, Connection(int(pipe))).run()
        machine.adapters.close()
    except UnservableModel as error:  # which the first rank finds, too, and says
        logger.debug("this rank does not start: %s", error)
        return 1
    except EOFError:  # the first rank is gone
        return 0
    except Exception:
        logger.exception("rank %s failed", rank)
        return 1
    return 0
