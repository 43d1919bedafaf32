from pathlib import Path

import pytest

from tests.private_names import is_private, own_names, private_uses, unresolved

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "adapters", "server")
SOURCES = {path: path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
OURS = {name for source in SOURCES.values() for name in own_names(source)}


def test_private_names_of_other_libraries_are_used_in_private_rooms_alone() -> None:
    found = {
        path.relative_to(ROOT): uses
        for path, source in SOURCES.items()
        if "private" not in path.relative_to(ROOT).parts and (uses := private_uses(source, OURS))
    }
    listed = [f"{path}:{use.line}: {use.name}" for path, uses in sorted(found.items()) for use in uses]
    assert not listed, "move to a folder named `private`, with why and what replaces it:" + "\n".join(["", *listed])


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch._inductor.config", ["torch._inductor.config"]),
        ("import torch._dynamo as d\nd.reset()", ["torch._dynamo"]),
        ("from torch.fx.experimental import proxy_tensor", ["torch.fx.experimental.proxy_tensor"]),
        ("from torch import _foreach_add_ as f\nf(x, y)", ["torch._foreach_add_"]),
        ("import torch\ntorch.ops.mkldnn._linear_pointwise.default(x)", ["torch.ops.mkldnn._linear_pointwise.default"]),
        ("def f(model):\n    return model.config._attn_implementation", ["*._attn_implementation"]),
        ("getattr(model, '_hooks', 0)", ["*._hooks"]),
        ("class Own(Theirs):\n    def f(self):\n        self._run_once()", ["*._run_once"]),
        ("class Own:\n    def f(self):\n        self._kept = 1\n        return self._kept", []),
        ("row._replace(a=1)", []),
        ("import os\nos._exit(1)", []),
        ("from peftserve.kernels import _x\nfrom . import _y", []),
        ("import torch\ntorch.ops.aten.add.Tensor(x.__dict__, _)", []),
    ],
)
def test_uses_are_found_by_import_attribute_and_string(source: str, names: list[str]) -> None:
    assert [use.name for use in private_uses(source, {*own_names(source)})] == names


def test_names_are_looked_up_in_what_is_installed() -> None:
    there = ["os.path.join", "collections.abc", "tests.private_names.Use.line"]
    assert unresolved([*there, "os.path.no_such", "no_such_library.x"]) == ["os.path.no_such", "no_such_library.x"]
    assert not is_private("torch.fx.experimentally")
    assert is_private("torch.fx.experimental")
