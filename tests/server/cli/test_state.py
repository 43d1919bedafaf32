from contextlib import closing
from pathlib import Path

import pytest

from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.registry_file import NAME
from peftserve.adapters.store import AdapterStore
from peftserve.server.cli.main import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "state"
    with closing(AdapterStore(root)) as store, open_registry(root, store) as (registry, _):
        staged = store.stage(1000)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            with staged.open(name) as file:
                file.write(b"{}")
        registry.add("sql", store.commit(staged), AdapterFacts("LORA", 8, 1, {}, 1, 2))
    return root


def said(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    out, errors = capsys.readouterr()
    assert "Traceback" not in errors
    return out, errors


def test_check_repair_and_backup(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["state", "check", "--state-dir", str(root)]) == 0
    assert said(capsys)[0] == "1 of 1 versions are whole.\n"
    (root / NAME).write_bytes(b"junk" * 500)
    assert main(["state", "check", "--state-dir", str(root)]) == 1
    assert "The registry of adapters is damaged" in said(capsys)[0]
    assert main(["state", "backup", "--state-dir", str(root), str(tmp_path / "copy")]) == 1
    assert "peftserve state repair" in said(capsys)[1]
    assert main(["state", "repair", "--state-dir", str(root)]) == 0
    assert "served again" in said(capsys)[0]
    for place in ([str(tmp_path / "copy")], ["--out", str(tmp_path / "another")]):
        assert main(["state", "backup", "--state-dir", str(root), *place]) == 0
        assert f"The backup is in {place[-1]}" in said(capsys)[0]
    (weights,) = (root / "adapters").rglob("*.safetensors")
    weights.write_bytes(b"rotten")
    for action in ("check", "repair"):
        assert main(["state", action, "--state-dir", str(root)]) == 1
        assert "sql@1 are damaged or gone" in said(capsys)[0]


def test_the_folder_may_come_from_the_environment(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTSERVE_STATE_DIR", str(root))
    assert main(["state", "check"]) == 0
    monkeypatch.delenv("PEFTSERVE_STATE_DIR")
    with pytest.raises(SystemExit):
        main(["state", "check"])
    assert "--state-dir" in said(capsys)[1]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["check", "--state-dir", "nowhere"], 2, "there is no folder 'nowhere'"),
        (["backup", "--state-dir", "ROOT"], 2, "give one folder"),
        (["backup", "--state-dir", "ROOT", "x", "--out", "y"], 2, "give one folder"),
        (["backup", "--state-dir", "ROOT", "ROOT"], 1, "already"),
    ],
)
def test_mistakes(
    arguments: list[str], status: int, message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["state", *(str(root) if word == "ROOT" else word for word in arguments)]) == status
    assert message in said(capsys)[1]


def test_no_repair_beside_a_server(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(AdapterStore(root)):
        assert main(["state", "repair", "--state-dir", str(root)]) == 1
        assert main(["state", "check", "--state-dir", str(root)]) == 0
    assert "another server" in said(capsys)[1]
