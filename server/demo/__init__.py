"""The built-in demo: a small base, its adapters and a route among them, as files of this package.

`examples/demo/train.py` made the base and the adapters.
"""

from pathlib import Path

_HERE = Path(__file__).parent

DEMO_NAME = "demo"
DEMO_MODEL = _HERE / "base"
DEMO_ADAPTERS = {folder.name: folder for folder in sorted(_HERE.glob("adapters/*")) if folder.is_dir()}
DEMO_ROUTES = {file.stem: file for file in sorted(_HERE.glob("routes/*.json"))}
DEMO_HELD_OUT = _HERE / "heldout.jsonl"
