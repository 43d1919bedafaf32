import json
from contextlib import closing
from pathlib import Path

import pytest
from safetensors.torch import load_file

from peftserve.adapters.base_binding import BaseIdentity, bind
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.store import AdapterStore
from peftserve.server.cli.main import main
from peftserve.server.cli.merge import parse_asked
from peftserve.server.demo import DEMO_ADAPTERS, DEMO_MODEL
from peftserve.server.engine.model.fingerprint import fingerprint


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Make a state folder of the demo's base, with two versions of one name."""
    root = tmp_path / "state"
    with closing(AdapterStore(root)) as store, open_registry(root, store) as (registry, _):
        for adapter in ("sql", "title"):
            staged = store.stage(10_000_000)
            staged.copy_folder(DEMO_ADAPTERS[adapter])
            registry.add("mine", store.commit(staged), AdapterFacts("LORA", 8, 1, {}, 1, 2))
    bind(root, BaseIdentity("demo", fingerprint(str(DEMO_MODEL))), in_use=True, allow_other=False)
    return root


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, errors = capsys.readouterr()
    assert "Traceback" not in errors
    return out + errors


def test_names_of_a_state_folder_versions_and_folders(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, one, other = DEMO_ADAPTERS["snake"], tmp_path / "one", tmp_path / "other"
    (tmp_path / "mine").mkdir()  # a name comes before a folder
    monkeypatch.chdir(tmp_path)
    adapters = ["--adapter", "mine@1=0.5", "--adapter", f"{folder}=0.25"]
    assert main(["merge", str(DEMO_MODEL), *adapters, "--state-dir", str(state), "--out", str(one)]) == 0
    assert said(capsys) == f"{one}: base + 0.5 mine@1 + 0.25 snake\n"
    monkeypatch.setenv("PEFTSERVE_STATE_DIR", str(state))
    assert main(["merge", "--adapter", "mine", "--out", str(other), "--max-shard-size", "1MB"]) == 0
    assert said(capsys) == f"{other}: demo + 1 mine@2\n"
    assert (other / "model.safetensors.index.json").exists()
    assert (one / "tokenizer.json").read_bytes() == (DEMO_MODEL / "tokenizer.json").read_bytes()
    assert (one / "chat_template.jinja").exists()
    assert (one / "generation_config.json").exists()
    assert load_file(one / "model.safetensors").keys() == load_file(DEMO_MODEL / "model.safetensors").keys()
    assert "| `mine@1` | 0.5 | LORA | 16 | `" in (one / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "sql=much"], "'sql=much' is not NAME_OR_PATH or NAME_OR_PATH=WEIGHT"),
        (["--adapter", "nobody"], "--adapter nobody: there is neither an adapter of that name in"),
        (["--adapter", "sql", "--max-shard-size", "x"], "--max-shard-size: 'x'"),
        (["--adapter", "snake-prefix"], "snake-prefix cannot be merged: it puts virtual tokens before the prompt"),
        (["--adapter", "sql", "--state-dir", "nowhere"], "--state-dir: there is no folder 'nowhere'"),
        (["nowhere", "--adapter", "sql"], "neither an adapter of that name"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PEFTSERVE_STATE_DIR", raising=False)
    assert main(["merge", *arguments, "--out", str(tmp_path / "out")]) in (1, 2)
    text = said(capsys)
    assert message in text
    assert len(text.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_and_adapters_of_another_base_are_refused(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", "--adapter", "sql", "--out", str(tmp_path)]) == 2
    assert "there is something at" in said(capsys)
    bound = json.loads((state / "base.json").read_text())
    bound["fingerprint"]["numbers"] = "0"
    (state / "base.json").write_text(json.dumps(bound))
    out = str(tmp_path / "out")
    assert main(["merge", "--adapter", "mine", "--state-dir", str(state), "--out", out]) == 1
    assert "were made for another base, 'demo'" in said(capsys)


def test_a_weight_is_behind_the_last_equals_sign(tmp_path: Path) -> None:
    odd = tmp_path / "a=1"
    odd.mkdir()
    assert parse_asked("sql") == ("sql", 1.0)
    assert parse_asked("sql@2=-0.5") == ("sql@2", -0.5)
    assert parse_asked(str(odd)) == (str(odd), 1.0)
    assert parse_asked(f"{odd}=0.5") == (str(odd), 0.5)
