"""A state folder that was damaged between two starts, and a real server on it, with PEFT's tokens."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

OPTIONS = {"prompt": [20, 30, 40], "max_tokens": 4, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


def check_answers(server: Any, reference: Any, names: dict[str, Path]) -> None:
    """Ask each name for the tokens that the reference has of its adapter."""
    for name, adapter in names.items():
        response = server.client.post("/v1/completions", json={"model": name, **OPTIONS})
        assert response.status_code == 200, response.text
        sure = reference.sure(OPTIONS["prompt"], 4, ((adapter, 1.0),))
        assert response.json()["choices"][0]["token_ids"][: len(sure)] == sure


def run_state_command(action: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "peftserve.server.cli.main", "state", action, "--state-dir", str(folder)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.timeout(600)
def test_lost_registries_flipped_bits_backups_and_other_bases(
    world: Any, serve: Callable[..., Any], tmp_path: Path
) -> None:
    """One after the other on one state folder.

    The second server has room for one adapter in host memory, so that each comes from the disk, and the base elsewhere.
    """
    names = {f"a{i}": adapter for i, adapter in enumerate(world.adapters[:3])}
    server = serve()
    digests = {name: server.upload(name, adapter).json()["digest"] for name, adapter in names.items()}
    assert server.client.put("/v1/default-adapter", json={"adapter": "a1"}).status_code == 200
    route = {"kind": "fallback", "targets": ["a0", "a1"]}
    assert server.client.put("/v1/routes/safe", json=route).status_code == 201
    copy = tmp_path / "backup"
    backup = run_state_command("backup", server.state, str(copy))
    assert (backup.returncode, backup.stdout.splitlines()[-1]) == (0, "3 of 3 versions are whole.")
    server.kill()  # as a power cut: what SQLite keeps beside the file stays
    for file in server.state.glob("registry.sqlite*"):
        file.unlink()

    moved = shutil.copytree(world.model, tmp_path / "moved")
    server = serve("--max-cpu-loras", "1", "--host-adapter-memory", "1", "--max-loras", "1", model=moved)
    check_answers(server, world.reference, {**names, "safe": names["a0"]})
    assert server.client.get("/v1/default-adapter").json() == {"adapter": "a1"}
    assert "served again" in server.log.read_text()
    assert server.stop() == 0

    flip(server.state / "adapters" / digests["a0"] / "adapter_model.safetensors")
    (server.state / "registry.sqlite").write_bytes(os.urandom(5000))
    assert run_state_command("check", server.state).returncode == 1
    server = serve()
    check_answers(server, world.reference, {"safe": names["a1"]})  # of files that nobody has looked at before
    damaged = server.client.post("/v1/completions", json={"model": "a0", **OPTIONS})
    assert (damaged.status_code, damaged.json()["error"]["code"]) == (503, "adapter_damaged")
    assert "upload the same files again" in damaged.json()["error"]["message"]
    streamed = server.client.post("/v1/completions", json={"model": "a0", "stream": True, **OPTIONS})
    assert streamed.status_code == 503
    check_answers(server, world.reference, {"a1": names["a1"], "a2": names["a2"]})
    server.wait_until(lambda: "error" in server.client.get("/v1/adapters/a0").json(), "set the files aside")
    assert server.metric("peftserve:adapter_integrity_failures_total") >= 1
    assert list((server.state / "lost+found").rglob(digests["a0"]))
    assert server.upload("mended", names["a0"]).json()["digest"] == digests["a0"]
    check_answers(server, world.reference, {**names, "mended": names["a0"]})
    assert "Traceback" not in server.log.read_text()
    assert server.stop() == 0
    checked = run_state_command("check", server.state)
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, "4 of 4 versions are whole.")

    shutil.rmtree(server.state)
    copy.rename(server.state)
    other = world.oracle.tiny_model("llama", 2, tmp_path / "other")
    check_refusal(other, server.state)
    server = serve("--allow-other-base", model=other)
    check_answers(server, world.oracle.PeftOracle(other), names)


def check_refusal(other: Path, state: Path) -> None:
    """Start on adapters that were made for another base of the same shapes, which ends at once and says why."""
    command = [sys.executable, "-m", "peftserve.server.cli.main", "serve", str(other)]
    command += ["--state-dir", str(state), "--port", "0", "--num-threads", "1"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "made for another base" in refused.stderr
    assert "Traceback" not in refused.stderr


def flip(file: Path) -> None:
    """Flip one bit, near the end: of a weight."""
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)
