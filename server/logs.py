"""The log of each of the server's processes, on standard error."""

import logging

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CHATTY = ("uvicorn", "httpx")  # libraries that log every request


def set_up_logging(level: str) -> None:
    """Send what is logged from `level` on to standard error. level: `debug`, `info`, `warning`, `error`, `critical`."""
    logging.basicConfig(level=level.upper(), format=FORMAT)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
