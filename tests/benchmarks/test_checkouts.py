import os
import sys
from pathlib import Path

import pytest

from benchmarks.checkouts import ROOT, link_package, script_of, subject

PROGRAM = """
import json, sys
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    print(json.dumps([json.loads(line)]), flush=True)
    if line == "null\\n":
        break
"""


def test_a_subject_answers_until_it_ends(tmp_path: Path) -> None:
    with subject([sys.executable, "-Sc", PROGRAM], os.environ, tmp_path) as process:
        assert process.answer() == "ready"
        assert process.ask({"steps": 3}) == [{"steps": 3}]
        assert process.ask(None) == [None]
        for _ in range(2):  # the second is asked of nobody
            with pytest.raises(SystemExit, match="has ended"):
                process.ask(None)


def test_a_checkout_brings_its_package_and_its_scripts(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/instant_engine.py").touch()
    assert script_of(tmp_path, "instant_engine.py") == tmp_path / "benchmarks/instant_engine.py"
    for name in ("instant_engine.py", "host_subject.py"):
        assert script_of(ROOT, name).is_file()
    with pytest.raises(SystemExit, match="no benchmark"):
        script_of(tmp_path, "host_subject.py")
    link_package(ROOT, tmp_path / "package")
    assert (tmp_path / "package/peftserve/server/cli/main.py").is_file()
