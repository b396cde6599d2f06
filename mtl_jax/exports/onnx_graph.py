"""Translates a function of JAX to an ONNX graph, operation by operation.

The function is traced with a symbolic batch size. What does not depend on its input is
computed at once, as the matrices of a resizing are. An array that is repeated along an
axis stays as it is: ONNX repeats it where it is used, as NumPy does.

It knows the operations of the package's networks and of what is read off their maps,
and those that a network of one's own is likely to have. Reference: the operators of
ONNX, https://onnx.ai/onnx/operators/.
"""

import dataclasses
import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export
from onnx import helper, numpy_helper

from mtl_jax.errors import UserError

# The first with all the operators that are used, and with their axes as inputs.
OPSET = 18
# The IR version that came with it.
_IR = 8

INPUT = "images"
_BATCH = "batch"
# Elements of an array that is computed at once, not in the graph.
_LARGEST_CONSTANT = 2**22

# Operations of which each is an operator of ONNX.
_OPERATORS = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "and": "And",
    "ceil": "Ceil",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
}


@dataclasses.dataclass(frozen=True)
class _Value:
    """What the graph has of an array.

    Attributes:
      shape: axes of 1 are to be repeated where JAX's array is longer.
      name: in the graph; None for what is known.
      known: its numbers; None if they depend on the input.
    """

    shape: tuple[Any, ...]
    name: str | None = None
    known: np.ndarray | None = None


class _Graph:
    """Nodes and constants as they come. Bodies of loops are graphs inside of it."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._names = 0
        self._of_content: dict[Any, str] = {}
        self._of_size: dict[int, str] = {}
        # Of the whole graph, so that bodies may use them, too.
        self.sizes = [
            helper.make_node("Shape", [INPUT], [_BATCH], start=0, end=1),
        ]

    def new_name(self) -> str:
        self._names += 1
        return f"v{self._names}"

    def emit(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = self.new_name()
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, array: Any) -> str:
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._of_content:
            name = self.new_name()
            self.constants[name] = numpy_helper.from_array(array, name)
            self._of_content[key] = name
        return self._of_content[key]

    def integers(self, values: Sequence[Any]) -> str:
        return self.constant(np.array([int(value) for value in values], np.int64))

    def factor(self, size: Any) -> int:
        """How many times the batch size a symbolic size is."""
        return int(size // self.batch)

    def sizes_of(self, shape: Sequence[Any]) -> str:
        """The name of a shape [rank], int64, where the batch size is known."""
        if all(isinstance(size, int | np.integer) for size in shape):
            return self.integers(shape)
        parts = []
        for size in shape:
            if isinstance(size, int | np.integer):
                parts.append(self.integers([size]))
                continue
            factor = self.factor(size)
            if factor not in self._of_size:
                name = self.new_name()
                inputs = [_BATCH, self.integers([factor])]
                self.sizes.append(helper.make_node("Mul", inputs, [name]))
                self._of_size[factor] = name
            parts.append(self._of_size[factor])
        return self.emit("Concat", *parts, axis=0)


def to_onnx(
    function: Callable[[jax.Array], dict[str, jax.Array]], image_size: int
) -> onnx.ModelProto:
    """Translates a function of images.

    Args:
      function: pure function of uint8 images [B, image_size, image_size, 3], whose
        result is a dict of arrays [B, ...].
      image_size: pixels a side.

    Returns:
      A checked model with the input `images`, and an output for each entry, by its
      name. Its batch size is free.

    Raises:
      UserError: if the function has an operation that is not known here.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8)
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(images)
    graph = _Graph(batch)
    found = _apply(graph, closed, [_Value(images.shape, INPUT)])
    names = [
        graph.emit("Identity", _named(graph, value, variable.aval.shape))
        for value, variable in zip(found, closed.jaxpr.outvars, strict=True)
    ]
    flat = jax.tree.leaves_with_path(outputs)
    results = []
    for name, (path, shape) in zip(names, flat, strict=True):
        output = path[0].key
        graph.nodes.append(helper.make_node("Identity", [name], [output]))
        results.append(_info(output, shape.dtype, shape.shape))
    nodes = _needed([*graph.sizes, *graph.nodes], [r.name for r in results])
    used = {name for node in nodes for name in _inputs(node)}
    constants = [c for name, c in graph.constants.items() if name in used]
    proto = helper.make_graph(
        nodes, "mtl_jax", [_info(INPUT, np.uint8, images.shape)], results, constants
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR,
        producer_name="mtl_jax",
    )
    onnx.checker.check_model(model)
    return model


def _info(name: str, dtype: Any, shape: Sequence[Any]) -> onnx.ValueInfoProto:
    sizes = [int(s) if isinstance(s, int | np.integer) else str(s) for s in shape]
    return helper.make_tensor_value_info(name, _dtype(dtype), sizes)


def _dtype(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _inputs(node: onnx.NodeProto) -> set[str]:
    """Names that a node uses, also those that the body of a loop does."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            body = attribute.g
            names |= {name for inner in body.node for name in _inputs(inner)}
            names |= {output.name for output in body.output}
    return names


def _needed(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]
) -> list[onnx.NodeProto]:
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= _inputs(node)
            kept.append(node)
    return kept[::-1]


def _aval(variable: Any) -> Any:
    return variable.aval


def _apply(graph: _Graph, closed: Any, arguments: Sequence[_Value]) -> list[_Value]:
    """Adds a traced function to the graph."""
    jaxpr = closed.jaxpr
    values: dict[Any, _Value] = {}

    def read(variable):
        if isinstance(variable, jax.extend.core.Literal):
            known = np.asarray(variable.val, _aval(variable).dtype)
            return _Value(known.shape, known=known)
        return values[variable]

    for variable, constant in zip(jaxpr.constvars, closed.consts, strict=True):
        known = np.asarray(constant)
        values[variable] = _Value(known.shape, known=known)
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        found = _translate(graph, equation, [*map(read, equation.invars)])
        values.update(zip(equation.outvars, found, strict=True))
    return [*map(read, jaxpr.outvars)]


def _translate(graph: _Graph, equation: Any, inputs: list[_Value]) -> list[_Value]:
    name = equation.primitive.name
    if name in _CALLS:
        return _apply(graph, equation.params[_CALLS[name]], inputs)
    shapes = [variable.aval.shape for variable in equation.invars]
    if (known := _computed(equation, inputs, shapes)) is not None:
        return known
    if name == "broadcast_in_dim":
        return [_broadcast(graph, equation, inputs[0])]
    out = equation.outvars[0].aval
    if name in _OPERATORS or name in _ELEMENTWISE:
        names = [_named(graph, value) for value in inputs]
        shape = _joined([value.shape for value in inputs])
        if name in _OPERATORS:
            return [_Value(shape, graph.emit(_OPERATORS[name], *names))]
        return [_Value(shape, _ELEMENTWISE[name](graph, equation, *names))]
    if name == "while":
        return _loop(graph, equation, inputs, shapes)
    if name not in _OTHERS:
        raise UserError(
            f"The network has the operation {name}, which the export to ONNX does not "
            "know; export it with --format=stablehlo."
        )
    if name in ("gather", "scatter-add"):
        return [_Value(out.shape, _OTHERS[name](graph, equation, inputs, shapes))]
    names = [
        _named(graph, value, shape) for value, shape in zip(inputs, shapes, strict=True)
    ]
    return [_Value(out.shape, _OTHERS[name](graph, equation, *names))]


def _computed(
    equation: Any, inputs: list[_Value], shapes: list[Any]
) -> list[_Value] | None:
    """The numbers of what does not depend on the input; None for all else."""
    if any(value.known is None for value in inputs):
        return None
    if any(v.shape != shape for v, shape in zip(inputs, shapes, strict=True)):
        return None
    outs = [variable.aval.shape for variable in equation.outvars]
    is_static = all(isinstance(s, int | np.integer) for out in outs for s in out)
    if not is_static or any(math.prod(out) > _LARGEST_CONSTANT for out in outs):
        return None
    arguments = [jnp.asarray(value.known) for value in inputs]
    with jax.ensure_compile_time_eval():
        found = equation.primitive.bind(*arguments, **equation.params)
    found = found if equation.primitive.multiple_results else [found]
    return [_Value(np.shape(x), known=np.asarray(x)) for x in found]


def _named(graph: _Graph, value: _Value, shape: tuple[Any, ...] | None = None) -> str:
    """The name of a value; with a shape, it is repeated to fill it."""
    name = graph.constant(value.known) if value.name is None else value.name
    if shape is None or value.shape == shape:
        return name
    return graph.emit("Expand", name, graph.sizes_of(shape))


def _joined(shapes: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The shape of what is computed element by element."""
    rank = max(map(len, shapes))
    full = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(
        next((s for s in sizes if not _is_one(s)), 1)
        for sizes in zip(*full, strict=True)
    )


def _is_one(size: Any) -> bool:
    return isinstance(size, int | np.integer) and size == 1


def _reshape(graph: _Graph, name: str, shape: Sequence[Any]) -> str:
    """Reshapes to a shape in which the batch size stands once at most."""
    sizes = [s if isinstance(s, int | np.integer) else -1 for s in shape]
    return graph.emit("Reshape", name, graph.integers(sizes))


def _broadcast(graph: _Graph, equation: Any, value: _Value) -> _Value:
    shape = [1] * len(equation.params["shape"])
    for size, axis in zip(
        value.shape, equation.params["broadcast_dimensions"], strict=True
    ):
        shape[axis] = size
    shape = tuple(shape)
    if value.known is not None:
        return _Value(shape, known=value.known.reshape(shape))
    if shape == value.shape:
        return value
    return _Value(shape, _reshape(graph, _named(graph, value), shape))


def _cast(graph: _Graph, name: str, dtype: Any) -> str:
    return graph.emit("Cast", name, to=_dtype(dtype))


def _convert(graph, equation, x):
    return _cast(graph, x, equation.params["new_dtype"])


def _not_equal(graph, equation, x, y):
    return graph.emit("Not", graph.emit("Equal", x, y))


def _select(graph, equation, which, *cases):
    no, yes = cases
    return graph.emit("Where", which, yes, no)


def _integer_power(graph, equation, x):
    dtype = equation.invars[0].aval.dtype
    return graph.emit("Pow", x, graph.constant(np.array(equation.params["y"], dtype)))


def _clamp(graph, equation, least, x, most):
    return graph.emit("Min", graph.emit("Max", x, least), most)


_ELEMENTWISE: Mapping[str, Callable[..., str]] = {
    "clamp": _clamp,
    "convert_element_type": _convert,
    "copy": lambda graph, _, x: graph.emit("Identity", x),
    "integer_pow": _integer_power,
    "ne": _not_equal,
    "rsqrt": lambda graph, _, x: graph.emit("Reciprocal", graph.emit("Sqrt", x)),
    "select_n": _select,
    "stop_gradient": lambda graph, _, x: graph.emit("Identity", x),
    "square": lambda graph, _, x: graph.emit("Mul", x, x),
}


def _to_output_shape(graph, equation, x):
    return _reshape(graph, x, equation.outvars[0].aval.shape)


def _transpose(graph, equation, x):
    return graph.emit("Transpose", x, perm=[*equation.params["permutation"]])


def _reverse(graph, equation, x):
    axes = equation.params["dimensions"]
    if not axes:
        return x
    ends = graph.integers([np.iinfo(np.int64).min] * len(axes))
    steps = graph.integers([-1] * len(axes))
    return graph.emit("Slice", x, steps, ends, graph.integers(axes), steps)


def _slice(graph, equation, x):
    params, shape = equation.params, equation.invars[0].aval.shape
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    axes = [
        i
        for i, size in enumerate(shape)
        if (starts[i], limits[i], strides[i]) != (0, size, 1)
    ]
    if not axes:
        return x
    return graph.emit(
        "Slice",
        x,
        *(graph.integers([v[i] for i in axes]) for v in (starts, limits)),
        graph.integers(axes),
        graph.integers([strides[i] for i in axes]),
    )


def _pad(graph, equation, x, value):
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner) or min(*low, *high) < 0:
        raise UserError(
            "The network pads between pixels or cuts by padding, which the export to "
            "ONNX does not know; export it with --format=stablehlo."
        )
    return graph.emit("Pad", x, graph.integers([*low, *high]), value)


def _concatenate(graph, equation, *parts):
    return graph.emit("Concat", *parts, axis=int(equation.params["dimension"]))


def _stack(graph, equation, *parts):
    axis = int(equation.params["axis"])
    parts = [graph.emit("Unsqueeze", x, graph.integers([axis])) for x in parts]
    return graph.emit("Concat", *parts, axis=axis)


def _tile(graph, equation, x):
    return graph.emit("Tile", x, graph.sizes_of(equation.params["reps"]))


def _reduction(operator: str) -> Callable[..., str]:
    def reduce(graph, equation, x):
        axes = graph.integers(equation.params["axes"])
        dtype = equation.invars[0].aval.dtype
        is_bool = dtype == np.bool_
        x = _cast(graph, x, np.int32) if is_bool else x
        reduced = graph.emit(operator, x, axes, keepdims=0)
        return _cast(graph, reduced, bool) if is_bool else reduced

    return reduce


def _sum(graph, equation, x):
    # One axis after the other. onnxruntime adds the numbers of several axes in a row:
    # of 128 x 128 pixels it loses three digits, and a variance that is the difference
    # of two such sums all of them.
    for axis in sorted(equation.params["axes"], reverse=True):
        x = graph.emit("ReduceSum", x, graph.integers([axis]), keepdims=0)
    return x


def _arg(operator: str) -> Callable[..., str]:
    def index(graph, equation, x):
        (axis,) = equation.params["axes"]
        if equation.invars[0].aval.dtype == np.bool_:
            x = _cast(graph, x, np.int32)
        found = graph.emit(operator, x, axis=int(axis), keepdims=0)
        return _cast(graph, found, equation.params["index_dtype"])

    return index


def _dot(graph, equation, x, y):
    """A product of arrays; letters name their axes."""
    (x_sum, y_sum), (x_batch, y_batch) = equation.params["dimension_numbers"]
    letters = iter(string.ascii_lowercase)
    x_axes = [next(letters) for _ in equation.invars[0].aval.shape]
    y_axes = [next(letters) for _ in equation.invars[1].aval.shape]
    for i, j in zip((*x_sum, *x_batch), (*y_sum, *y_batch), strict=True):
        y_axes[j] = x_axes[i]
    batch = [x_axes[i] for i in x_batch]
    own = [
        letter
        for axes, used in ((x_axes, {*x_sum, *x_batch}), (y_axes, {*y_sum, *y_batch}))
        for i, letter in enumerate(axes)
        if i not in used
    ]
    text = f"{''.join(x_axes)},{''.join(y_axes)}->{''.join([*batch, *own])}"
    return graph.emit("Einsum", x, y, equation=text)


def _convolve(graph, equation, x, kernel):
    params = equation.params
    lhs, rhs, out = params["dimension_numbers"]
    if any(d != 1 for d in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise UserError(
            "The network has a transposed convolution, which the export to ONNX does "
            "not know; export it with --format=stablehlo."
        )
    low, high = zip(*params["padding"], strict=True)
    found = graph.emit(
        "Conv",
        graph.emit("Transpose", x, perm=[*lhs]),
        graph.emit("Transpose", kernel, perm=[*rhs]),
        strides=[*params["window_strides"]],
        dilations=[*params["rhs_dilation"]],
        pads=[*low, *high],
        group=params["feature_group_count"],
    )
    return graph.emit("Transpose", found, perm=np.argsort(out).tolist())


def _pool(graph, equation, x):
    """The largest of the pixels around each, of [B, H, W, C]."""
    params = equation.params
    window, strides = params["window_dimensions"], params["window_strides"]
    low, high = zip(*params["padding"], strict=True)
    found = graph.emit(
        "MaxPool",
        graph.emit("Transpose", x, perm=[0, 3, 1, 2]),
        kernel_shape=[*window[1:3]],
        strides=[*strides[1:3]],
        pads=[*low[1:3], *high[1:3]],
    )
    return graph.emit("Transpose", found, perm=[0, 2, 3, 1])


def _gather(graph, equation, inputs, shapes):
    """A part at a known place, or one element of each row for each of some indices."""
    numbers, sizes = (
        equation.params["dimension_numbers"],
        equation.params["slice_sizes"],
    )
    operand, indices = inputs
    x = _named(graph, operand, shapes[0])
    out = equation.outvars[0].aval.shape
    is_part = indices.known is not None and indices.known.ndim == 1
    if is_part and not numbers.operand_batching_dims:
        starts = indices.known.reshape(-1)
        axes = numbers.start_index_map
        ends = [s + sizes[axis] for s, axis in zip(starts, axes, strict=True)]
        part = graph.emit("Slice", x, *map(graph.integers, (starts, ends, axes)))
        return _reshape(graph, part, out)
    if numbers.operand_batching_dims != (0,) or numbers.start_index_map != (1,):
        raise _unknown_places("takes")
    places = _named(graph, indices, shapes[1])
    places = graph.emit("Squeeze", places, graph.integers([-1]))
    return graph.emit("GatherElements", x, places, axis=1)


def _scatter_add(graph, equation, inputs, shapes):
    """Adds to one element of each row for each of some indices."""
    numbers = equation.params["dimension_numbers"]
    is_by_row = numbers.operand_batching_dims == (0,)
    if not is_by_row or tuple(numbers.scatter_dims_to_operand_dims) != (1,):
        raise _unknown_places("adds")
    x, places, updates = (
        _named(graph, value, shape) for value, shape in zip(inputs, shapes, strict=True)
    )
    places = graph.emit("Squeeze", places, graph.integers([-1]))
    return graph.emit("ScatterElements", x, places, updates, axis=1, reduction="add")


def _unknown_places(verb: str) -> UserError:
    return UserError(
        f"The network {verb} elements at computed places in a way that the export to "
        "ONNX does not know; export it with --format=stablehlo."
    )


_OTHERS: Mapping[str, Callable[..., str]] = {
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "concatenate": _concatenate,
    "conv_general_dilated": _convolve,
    "dot_general": _dot,
    "expand_dims": _to_output_shape,
    "gather": _gather,
    "pad": _pad,
    "reduce_and": _reduction("ReduceMin"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_or": _reduction("ReduceMax"),
    "reduce_sum": _sum,
    "reduce_window_max": _pool,
    "reshape": _to_output_shape,
    "rev": _reverse,
    "scatter-add": _scatter_add,
    "slice": _slice,
    "squeeze": _to_output_shape,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}


def _loop(
    graph: _Graph, equation: Any, inputs: list[_Value], shapes: list[Any]
) -> list[_Value]:
    params = equation.params
    count, body_count = params["cond_nconsts"], params["body_nconsts"]
    # Where they are used more than once, they are repeated once.
    full = [
        _Value(shape, _named(graph, value, shape))
        for value, shape in zip(inputs, shapes, strict=True)
    ]
    of_condition, of_body = full[:count], full[count : count + body_count]
    state = full[count + body_count :]
    outs = [variable.aval for variable in equation.outvars]

    def goes_on(state):
        (value,) = _apply(graph, params["cond_jaxpr"], [*of_condition, *state])
        return _named(graph, value, ())

    first = goes_on(state)
    outer, graph.nodes = graph.nodes, []
    names = [graph.new_name() for _ in outs]
    inside = [_Value(aval.shape, name) for aval, name in zip(outs, names, strict=True)]
    found = _apply(graph, params["body_jaxpr"], [*of_body, *inside])
    new = [
        graph.emit("Identity", _named(graph, value, aval.shape))
        for value, aval in zip(found, outs, strict=True)
    ]
    after = [_Value(a.shape, name) for a, name in zip(outs, new, strict=True)]
    condition = graph.emit("Identity", goes_on(after))
    rounds, before = graph.new_name(), graph.new_name()
    body = helper.make_graph(
        graph.nodes,
        "body",
        [
            _info(rounds, np.int64, ()),
            _info(before, bool, ()),
            *(_info(n, a.dtype, a.shape) for n, a in zip(names, outs, strict=True)),
        ],
        [
            _info(condition, bool, ()),
            *(_info(n, a.dtype, a.shape) for n, a in zip(new, outs, strict=True)),
        ],
    )
    graph.nodes = outer
    results = [graph.new_name() for _ in outs]
    inputs_of_loop = ["", first, *(_named(graph, value) for value in state)]
    graph.nodes.append(helper.make_node("Loop", inputs_of_loop, results, body=body))
    return [_Value(aval.shape, name) for aval, name in zip(outs, results, strict=True)]
