"""Private parts of torch's tracer and compiler, for `--compile`. The import takes seconds: only the compiled model
imports this.

When many of them go, `torch.compile(model, dynamic=True)` is the public way. It would compile a model as a whole, each
layer anew, and have no way to leave calls to this process. A server without `--compile` uses nothing of this.
"""

from collections.abc import Mapping, Sequence

from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.ir import ConcatKernel, FixedLayout, FlexibleLayout, SliceView, StorageBox, TensorBox
from torch._inductor.lowering import register_lowering
from torch._inductor.virtualized import V
from torch._ops import OpOverload
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
    StrictMinMaxConstraint,
)
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils._sympy.value_ranges import ValueRanges

__all__ = [
    "ConcatKernel",
    "ConstantSource",
    "DimDynamic",
    "FakeTensor",
    "FakeTensorMode",
    "FixedLayout",
    "FlexibleLayout",
    "OpOverload",
    "ShapeEnv",
    "SliceView",
    "StatelessSymbolicContext",
    "StorageBox",
    "StrictMinMaxConstraint",
    "TensorBox",
    "TracingContext",
    "TreeSpec",
    "V",
    "ValueRanges",
    "compile_fx_inner",
    "config",
    "detect_fake_mode",
    "disable_proxy_modes_tracing",
    "enable_python_dispatcher",
    "keep_strides",
    "make_fx",
    "register_lowering",
    "select_decomp_table",
    "tracing",
    "tree_flatten",
    "tree_unflatten",
]

_NO_COMPILER = (
    "Without it the import of this module fails; a server that is asked to compile warns, and runs operators one by "
    "one."
)
_NO_WIDENING = "Without it no inputs are widened: bypasses in spare columns need a copy of each input."
_DEFAULTS = "Without it inductor has its default: the same results, somewhat slower."

NAMES: Mapping[str, str] = {
    "torch._dispatch.python.enable_python_dispatcher": "Traces through operators written in Python. " + _NO_COMPILER,
    "torch._dynamo.source.ConstantSource": (
        "Names a symbol: the number of rows has no source in a frame. " + _NO_COMPILER
    ),
    "torch._guards.TracingContext": "Inductor looks up its fake mode in one. " + _NO_COMPILER,
    "torch._guards.detect_fake_mode": "The mode in which a traced graph's tensors were made. " + _NO_COMPILER,
    "torch._guards.tracing": "Sets the context for one compilation. " + _NO_COMPILER,
    "torch._inductor.compile_fx.compile_fx_inner": "Compiles one graph of plain operators. " + _NO_COMPILER,
    "torch._inductor.config.patch": "Sets what follows for one compilation. " + _DEFAULTS,
    "torch._inductor.config.size_asserts is not None": "Off: one program makes all inputs, in every step. " + _DEFAULTS,
    "torch._inductor.config.alignment_asserts is not None": "Off, for the same reason. " + _DEFAULTS,
    "torch._inductor.config.force_pointwise_cat is not None": (
        "Rotated halves are read from where they are. " + _DEFAULTS
    ),
    "torch._inductor.config.combo_kernels is not None": "One launch for what is independent. " + _DEFAULTS,
    "torch._inductor.decomposition.select_decomp_table": "The operators that inductor wants to see. " + _NO_COMPILER,
    "torch._inductor.ir.ConcatKernel.realize_into": "Writes a result into a part of a wider buffer. " + _NO_WIDENING,
    "torch._inductor.ir.ConcatKernel.unwrap_storage": (
        "The inputs of a concatenation, as inductor lists them. " + _NO_WIDENING
    ),
    "torch._inductor.ir.FixedLayout": "The layout of the wider buffer. " + _NO_WIDENING,
    "torch._inductor.ir.FlexibleLayout.contiguous_strides": "The strides of the wider buffer. " + _NO_WIDENING,
    "'clamp' in inspect.signature(torch._inductor.ir.SliceView.create).parameters": (
        "The part of the buffer that is written. " + _NO_WIDENING
    ),
    "torch._inductor.ir.StorageBox": "The memory of the wider buffer. " + _NO_WIDENING,
    "torch._inductor.ir.TensorBox": "The wider buffer as an operator's result. " + _NO_WIDENING,
    "torch._inductor.graph.GraphLowering.register_buffer": (
        "`V.graph`'s: tells the graph of a new buffer. " + _NO_WIDENING
    ),
    "torch._inductor.graph.GraphLowering.register_operation": "`V.graph`'s: and of what fills it. " + _NO_WIDENING,
    "torch._inductor.lowering.register_lowering": "Says how inductor computes an operator of ours. " + _NO_WIDENING,
    "torch._inductor.virtualized.V": "The graph that is compiled, and its fake mode. " + _NO_COMPILER,
    "'user_visible_output_idxs' in inspect.getsource(torch._inductor.compile_fx)": (
        "A mark on a graph's output: these outputs keep the strides that they were traced with. Instead: copies of all"
        " outputs into contiguous tensors."
    ),
    "'original_output_strides' in inspect.getsource(torch._inductor.compile_fx)": (
        "A mark on a graph's output: those strides. Instead: copies of all outputs into contiguous tensors."
    ),
    "torch._ops.OpOverload": "One form of an operator, such as the nodes of a graph call. " + _NO_COMPILER,
    "torch.ops.aten.view.default.is_view": (
        "Whether an operator only looks at a tensor in another way; such pieces are not worth compiling. Instead: "
        "torch.Tag, or a list of the views that models use."
    ),
    "torch._subclasses.FakeTensor": (
        "A tensor without values: a graph that holds one reads another layer's. " + _NO_COMPILER
    ),
    "torch._subclasses.FakeTensorMode": "Runs a model on tensors without values. " + _NO_COMPILER,
    "torch.fx.experimental.proxy_tensor.disable_proxy_modes_tracing": (
        "Traces a layer inside of a trace. " + _NO_COMPILER
    ),
    "torch.fx.experimental.proxy_tensor.make_fx": (
        "Traces a function to a graph of plain operators. Instead: torch.export."
    ),
    "torch.fx.experimental.symbolic_shapes.DimDynamic": "Makes the number of rows a symbol. Instead: torch.export.Dim.",
    "torch.fx.experimental.symbolic_shapes.ShapeEnv": (
        "Holds the symbols, and what is assumed of them. Instead: torch.export.Dim."
    ),
    "torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext": (
        "Says which sizes are symbols. Instead: torch.export.Dim."
    ),
    "torch.fx.experimental.symbolic_shapes.StrictMinMaxConstraint": (
        "Says how many rows a step has at most, without which every piece assumes on a GPU that 32 bits number its "
        "elements, and none is compiled. Instead: torch.export.Dim with a maximum."
    ),
    "torch.utils._sympy.value_ranges.ValueRanges": "The bounds of that constraint. Instead: the same.",
    "torch.utils._pytree.TreeSpec": (
        "How a layer's arguments are nested. Instead: torch.utils.pytree, once that is public."
    ),
    "torch.utils._pytree.tree_flatten": (
        "A layer's arguments as a list. Instead: torch.utils.pytree, once that is public."
    ),
    "torch.utils._pytree.tree_unflatten": "And back. Instead: torch.utils.pytree, once that is public.",
}
OPTIONAL: Mapping[str, str] = {
    "hasattr(torch._inductor.config, 'combo_kernel_peak_memory_pct_threshold')": (
        "Since torch 2.13. Lets kernels be combined whatever the memory of the pieces becomes by it. Versions"
        " without the setting do so."
    ),
}


def keep_strides(output: fx.Node, values: Sequence[fx.Node]) -> None:
    """Let inductor give the outputs of a graph the strides that they were traced with.

    output: the graph's output node. values: what it returns, with tensors without values in `meta["val"]`.
    """
    output.meta["user_visible_output_idxs"] = list(range(len(values)))
    output.meta["original_output_strides"] = [node.meta["val"].stride() for node in values]
