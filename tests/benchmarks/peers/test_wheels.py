import zipfile
from pathlib import Path
from typing import Any

import pytest


def test_only_what_kernels_need_is_unpacked(peers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = peers.module("wheels")
    monkeypatch.setattr(wheels, "UNPACKED", tmp_path / "unpacked")
    assert wheels.unpacked("vllm") is None
    wheel = tmp_path / "vllm.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (
            "vllm/utils/math_utils.py",
            "vllm/lora/ops/triton_ops/utils.py",
            "vllm/_C.so",
            "vllm/lora/utils.py",
        ):
            archive.writestr(name, "")
    assert wheels.unpack("vllm", wheel) == 2
    folder = wheels.unpacked("vllm")
    assert folder.name == f"vllm-{wheels.VERSIONS['vllm']}"
    assert (folder / "vllm" / "utils" / "math_utils.py").is_file()
