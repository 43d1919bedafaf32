"""Compile one piece of a traced model with TorchInductor, for any number of rows.

The number of rows is a symbol. What inductor assumes of it is in the symbols' guards. The caller looks at them once,
after the compilation: no step checks them.
"""

import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import fx

from ..private.inductor_private import (
    ConcatKernel,
    FixedLayout,
    FlexibleLayout,
    SliceView,
    StorageBox,
    TensorBox,
    TracingContext,
    V,
    compile_fx_inner,
    config,
    detect_fake_mode,
    keep_strides,
    register_lowering,
    tracing,
)
from .cutting import Piece
from .program import Run
from .widening import WIDENED


def compile_piece(piece: Piece) -> Run:
    """Compile a piece. Raises whatever inductor raises, such as for want of a C++ compiler."""
    module = fx.GraphModule({}, deepcopy(piece.graph))  # which inductor changes
    keep_strides(module.graph.output_node(), piece.outputs)
    fake = detect_fake_mode(piece.examples)
    with (
        tracing(TracingContext(fake)),
        V.set_fake_mode(fake),
        config.patch(_SETTINGS),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "TensorFloat32")  # float32 is to be exact
        code: Any = compile_fx_inner(module, piece.examples, is_inference=True)
    run: Run = code
    return run


_SETTINGS: dict[str, Any] = {
    "size_asserts": False,  # the same program makes all inputs, in every step
    "alignment_asserts": False,
    "force_pointwise_cat": True,  # halves that are rotated are read from where they are, and not put together before
    "combo_kernels": True,  # on a GPU, one launch for what is independent: q and k are rotated in one
}
if hasattr(config, "combo_kernel_peak_memory_pct_threshold"):  # torch 2.13: whatever the pieces' memory becomes by it
    _SETTINGS["combo_kernel_peak_memory_pct_threshold"] = None


@register_lowering(WIDENED, type_promotion_kind=None)
def _widened(x: Any, columns: int) -> Any:
    """Let the kernel that computes x write it into the first columns of a wider buffer, as for a concatenation.

    Nothing is written behind them: a concatenation with an empty tensor would copy that.
    """
    *leading, width = x.get_size()
    size = [*leading, width + columns]
    layout = FixedLayout(x.get_device(), x.get_dtype(), size, FlexibleLayout.contiguous_strides(size))
    wide = ConcatKernel(name=None, layout=layout, inputs=[])
    buffer = StorageBox(wide)
    own = SliceView.create(buffer, len(size) - 1, 0, width, clamp=False)
    wide.inputs = ConcatKernel.unwrap_storage([ConcatKernel.realize_into(x, own)])
    wide.name = V.graph.register_buffer(wide)
    V.graph.register_operation(wide)
    return TensorBox(buffer)
