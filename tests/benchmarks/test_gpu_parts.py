"""The commands are ones that can be run: a lent GPU's time is too dear for a word that nobody knows."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.kernels.options import make_parser

Script = Callable[[str], ModuleType]
ROOT = Path(__file__).parents[2]
CALL = 300.0  # seconds of one call


def settings(script: Script, tmp_path: Path) -> list[Any]:
    parts = script("gpu_parts")
    return [parts.Setting(device, tmp_path, kit=tmp_path) for device in ("cpu", "cuda")]


def commands(script: Script, tmp_path: Path) -> Iterator[Any]:
    for setting in settings(script, tmp_path):
        for make in script("gpu_parts").PARTS.values():
            yield from (command for stage in make(setting).stages for command in stage)


def script_file(module: str) -> Path:
    """The file that has the module's options: of a room that can be run, its main."""
    path = ROOT / module.replace(".", "/")
    return path / "main.py" if (path / "__main__.py").exists() else path.with_suffix(".py")


def test_every_script_and_every_test_is_there(script: Script, tmp_path: Path) -> None:
    for command in commands(script, tmp_path):
        files = [word for word in command.words if re.match(r"(tests|benchmarks)/", word)]
        assert files or script_file(command.words[2]).exists()
        assert not [file for file in files if not (ROOT / file).exists()]


def test_scripts_know_their_options(script: Script, tmp_path: Path) -> None:
    given: dict[Path, set[str]] = {}
    for command in commands(script, tmp_path):
        module = command.words[2]
        if module.startswith("benchmarks.") and module != "benchmarks.kernels":
            options = {word.partition("=")[0] for word in command.words if word.startswith("--")}
            given.setdefault(script_file(module), set()).update(options)
    assert len(given) >= 8
    for path, options in given.items():
        text = path.read_text()
        assert not [option for option in options if f'"{option}"' not in text and option[2:] not in text], path


def test_the_kernels_benchmark_takes_its_words(script: Script, tmp_path: Path) -> None:
    words = [c.words[3:] for c in commands(script, tmp_path) if "benchmarks.kernels" in c.words]
    assert len(words) >= 4
    for each in words:
        make_parser().parse_args(each)


COLLECT = """
import json, sys, pytest
sys.exit(max(pytest.main([*words, "--collect-only"]) for words in json.loads(sys.argv[1])))
"""


@pytest.mark.slow
def test_selected_tests_exist(script: Script, tmp_path: Path) -> None:
    """An expression that selects nothing would be a failure after the machine was started.

    All in one process, which imports what tests do once.
    """
    selecting = [list(c.words) for c in commands(script, tmp_path) if "-k" in c.words and "cuda" in c.words]
    assert selecting
    left_out = ("-o", "log_cli=true", "log_cli_level=WARNING")
    given = [words[words.index("pytest") + 1 :] for words in selecting]
    own = [["cpu" if word == "cuda" else word for word in words if word not in left_out] for words in given]
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, json.dumps(own)], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_parts_fit_a_call(script: Script, tmp_path: Path) -> None:
    """Of those that run unasked, the longest command of each stage together; a part that is longer cannot end."""
    parts = script("gpu_parts")
    for name in parts.UNASKED:
        stages = parts.PARTS[name](settings(script, tmp_path)[1]).stages
        assert sum(max(command.seconds for command in stage) for stage in stages if stage) <= 1.3 * CALL, name


@pytest.mark.parametrize("name", ["decode", "kernels", "prefill", "serve", "methods", "peers"])
def test_figures_are_written_where_they_are_looked_for(script: Script, tmp_path: Path, name: str) -> None:
    setting = settings(script, tmp_path)[1]
    words = [c.words for stage in script("gpu_parts").PARTS[name](setting).stages for c in stage]
    assert any(str(tmp_path) in word for each in words for word in each)


def test_without_a_kit_the_peers_cannot_run(script: Script, tmp_path: Path) -> None:
    parts = script("gpu_parts")
    missing = script("gpu").missing(parts.peers(parts.Setting("cuda", tmp_path)))
    assert "vllm_e2e.py" in missing
    assert "--vllm-kit DIR or VLLM_KIT says where it is" in missing
