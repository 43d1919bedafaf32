"""The whole server around the fake engine process. Run as `python fake_server_process.py OPTIONS-IN-JSON`."""

import functools
import json
import sys
from pathlib import Path

from peftserve.server.api import serve
from peftserve.server.config import EngineConfig, ServerConfig
from peftserve.server.wire.launch import encode_config

ENGINE = Path(__file__).with_name("fake_engine_process.py")


def fake_command(door: int, config: EngineConfig, script: str) -> list[str]:
    return [sys.executable, script, str(door), encode_config(config)]


def main() -> int:
    options = json.loads(sys.argv[1])
    config = ServerConfig(
        engine=EngineConfig(model=options["model"]),
        state_dir=Path(options["state"]),
        port=options["port"],
        api_workers=options.get("api_workers", 1),
        served_model_name="base",
        preload=tuple((name, Path(folder)) for name, folder in options["preload"]),
        preload_routes=tuple((name, Path(file)) for name, file in options.get("routes", ())),
        grace_period=options["grace"],
        allow_adapter_sources=frozenset(options.get("sources", ())),
        allow_source_hosts=("127.0.0.1",),
        allow_private_sources=True,
        adapter_sources=tuple(options.get("adapter_sources", ())),
        adapter_dir=Path(options["adapter_dir"]) if "adapter_dir" in options else None,
        **{key: Path(value) for key, value in options.get("paths", {}).items()},
        **options.get("fields", {}),
    )
    return serve.run(config, functools.partial(fake_command, script=options.get("engine", str(ENGINE))))


if __name__ == "__main__":
    sys.exit(main())
