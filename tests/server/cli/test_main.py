import subprocess
import sys

import pytest

from peftserve.server.cli.main import main

PROGRAM = """
import sys
from peftserve.server.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
heavy = {"torch", "transformers", "fastapi", "pydantic"} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["serve", "--port", "x"], ["bench", "--help"], ["merge", "--help"]]
)
def test_help_and_mistakes_import_nothing_heavy(arguments: list[str]) -> None:
    finished = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--max-loras", "many"]) == 2
    assert capsys.readouterr().err == "peftserve: --max-loras: 'many' is not a whole number of 1 or more\n"


def test_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "COMMAND" in capsys.readouterr().err
