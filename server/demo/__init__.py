"""The built-in demo: a small base and its adapters, as files of this package. `examples/demo/train.py` made them."""

from pathlib import Path

_HERE = Path(__file__).parent

DEMO_NAME = "demo"
DEMO_MODEL = _HERE / "base"
DEMO_ADAPTERS = {folder.name: folder for folder in sorted(_HERE.glob("adapters/*")) if folder.is_dir()}
DEMO_HELD_OUT = _HERE / "heldout.jsonl"
