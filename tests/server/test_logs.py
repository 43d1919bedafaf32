"""The level that the operator asks for, and libraries that log every request only from warnings on."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from peftserve.server.logs import set_up_logging
set_up_logging(sys.argv[1])
for name in ("peftserve.x", "httpx"):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger(name).log(level, "said")
"""


@pytest.mark.parametrize(
    ("level", "ours", "theirs"),
    [
        ("debug", ["DEBUG", "INFO", "WARNING", "ERROR"], ["WARNING", "ERROR"]),
        ("info", ["INFO", "WARNING", "ERROR"], ["WARNING", "ERROR"]),
        ("error", ["ERROR"], ["ERROR"]),
    ],
)
def test_a_level_is_the_least_that_is_logged(level: str, ours: list[str], theirs: list[str]) -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM, level], capture_output=True, text=True, check=True)
    said = [line.split()[2:] for line in run.stderr.splitlines()]
    assert [words for words in said if words[1] == "peftserve.x:"] == [[word, "peftserve.x:", "said"] for word in ours]
    assert [words[0] for words in said if words[1] == "httpx:"] == theirs
