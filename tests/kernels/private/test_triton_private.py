import inspect

import pytest
from triton.compiler import CompiledKernel

from peftserve.kernels.private import triton_private
from tests.private_names import unresolved


def test_every_name_is_there() -> None:
    assert not [f"{name}: {triton_private.NAMES[name]}" for name in unresolved(triton_private.NAMES)]


@pytest.mark.parametrize("name", ["n_regs", "n_spills", "metadata.num_warps", "metadata.shared", "metadata.target"])
def test_a_compiled_kernel_has_what_figures_are_read_of(name: str) -> None:
    """Looks at the source: a kernel has them once it is loaded, which takes a GPU."""
    assert f"self.{name}" in inspect.getsource(CompiledKernel), triton_private.NAMES["triton.compiler.CompiledKernel"]
