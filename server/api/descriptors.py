"""File descriptors: each connection takes one, and the system has a limit of its own for them."""

import logging
import resource

OTHERS = 256  # for all else that a process opens
OF_EACH = 2  # a request that is passed on takes a second connection

logger = logging.getLogger(__name__)


def room_for(connections: int) -> int:
    """Make room for as many, as far as the system lets us. Returns how many there is room for; 0: no limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OTHERS + OF_EACH * connections
    if soft == resource.RLIM_INFINITY or (connections and soft >= wanted):
        return connections
    if not connections:
        wanted = max(soft, hard)
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = max(1, (soft - OTHERS) // OF_EACH)
    if room < connections:
        logger.warning("The system's limit on open files (%d) allows for %d connections only", soft, room)
    return min(room, connections) if connections else 0
