"""The compiled loop as a function of this process, which runs on torch's own threads."""

import ctypes
import logging

from ...private.torch_private import openmp_function

logger = logging.getLogger(__name__)

OPENMP_FUNCTIONS = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")


class Loop:
    """The loop for one type. It reads the tables of `tables.py`. most_rows: of a tile."""

    def __init__(self, path: str) -> None:
        """Load the library. Raises OSError if it does not load."""
        library = ctypes.CDLL(path)
        self._add = library.add_bypasses
        self._add.argtypes, self._add.restype = (ctypes.c_void_p,) * 3, None
        self._team = _team()
        self._team_address = ctypes.addressof(self._team)
        self.most_rows = int(library.most_rows_of_a_tile())

    def add(self, plan: int, call: int) -> None:
        """Add the deltas of one call. plan, call: addresses of the tables."""
        self._add(plan, call, self._team_address)


def _team() -> ctypes.Array[ctypes.c_int64]:
    """Return the addresses of the OpenMP functions that torch's operators run on, or zeros, for one thread."""
    team = (ctypes.c_int64 * len(OPENMP_FUNCTIONS))()
    try:
        team[:] = [openmp_function(name) for name in OPENMP_FUNCTIONS]
    except (OSError, AttributeError) as error:
        logger.warning("bypasses run on one thread: %s", error)
    return team
