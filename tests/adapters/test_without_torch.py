import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["library", "router", "peft.config", "safetensors_header"])
def test_what_the_api_process_imports_is_free_of_torch(module: str) -> None:
    check = f"import sys, peftserve.adapters.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
