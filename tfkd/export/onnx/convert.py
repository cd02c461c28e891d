"""Conversion of Keras models to ONNX graphs by tf2onnx, with work-arounds for its gaps.

Keras runs grouped convolutions in a function marked for XLA, which TensorFlow does not
inline and tf2onnx can't convert: the mark is removed first. Two optimizers of tf2onnx
are disabled because they move or fold QuantizeLinear and DequantizeLinear nodes, from
which TensorRT reads the quantization.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd.export import unsupported
from tfkd.export.named_function import NamedFunction
from tfkd.export.onnx.graph import Wiring
from tfkd.formats.litert import quiet_stderr
from tfkd.formats.onnx_nodes import all_nodes, require

# The newest opset that tf2onnx writes.
NEWEST = 18
_NO_INLINE = ("_XlaMustCompile", "_noinline")
# merge_duplication depends on the order of Python sets; `Wiring.close` merges instead.
_LEFT_OUT = ("q_dq_optimizer", "const_dequantize_optimizer", "merge_duplication")
_LONGEST_MESSAGE = 1500  # characters; tf2onnx's messages may contain whole graphs


class _Errors(logging.Handler):
    """A logging handler that collects error messages."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def _quiet() -> Iterator[_Errors]:
    """Silences TensorFlow and tf2onnx; yields the collector of the errors that they log."""
    errors = _Errors()
    loggers = [tf.get_logger(), logging.getLogger("absl"), logging.getLogger("tf2onnx")]
    before = [(logger.level, logger.propagate, logger.handlers) for logger in loggers]
    with warnings.catch_warnings(), quiet_stderr():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
            logger.propagate, logger.handlers = False, [errors]
        try:
            yield errors
        finally:
            for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
                logger.setLevel(level)
                logger.propagate, logger.handlers = propagate, handlers


def convert(graph: NamedFunction, opset: int, batch_size: int | None, nchw: bool) -> Wiring:
    """Converts a model.

    Args:
        graph: the model.
        opset: opset of the result, at most `NEWEST`.
        batch_size: batch size; None leaves it open.
        nchw: whether inputs of rank 4 are (batch, channels, height, width).

    Returns:
        The editable graph, before naming. Its inputs and outputs are in the order of
        `graph.inputs` and `graph.outputs`.

    Raises:
        ValueError: if tf2onnx rejects the model, or leaves TensorFlow operations in
            the result.
        ImportError: if onnx or tf2onnx is missing.
    """
    require("onnx")
    require("tf2onnx")
    messages: list[str] = []
    try:
        with _quiet() as errors:
            messages = errors.messages
            model = _run(graph, opset, batch_size, nchw)
    except Exception as error:  # tf2onnx raises exceptions of many types.
        raise _refused(graph, [str(error), *messages]) from error
    left = _foreign(model, opset)
    if left:
        others = "tfkd.export.to_saved_model or to_tflite"
        raise ValueError(unsupported.message(graph.model, "ONNX", left, others))
    return Wiring(model)


def _refused(graph: NamedFunction, messages: list[str]) -> ValueError:
    text = "; ".join(dict.fromkeys(m for m in messages if m))
    text = text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " ..."
    return ValueError(
        f"`model`: tf2onnx cannot convert {graph.model.name!r}. Take out or replace the layers "
        f"it names, or export to TFLite. It says: {text}"
    )


def _run(graph: NamedFunction, opset: int, batch_size: int | None, nchw: bool) -> Any:
    from tf2onnx import optimizer
    from tf2onnx.tfonnx import process_tf_graph

    frozen, inputs, outputs = _freeze(graph, batch_size)
    turned = [n for n, i in zip(inputs, graph.inputs, strict=True) if nchw and len(i.shape) == 3]
    passes = {k: v for k, v in optimizer._get_optimizers().items() if k not in _LEFT_OUT}
    with tf.device("/cpu:0"), tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(frozen, name="")
        converted = process_tf_graph(
            tf_graph,
            continue_on_error=True,
            opset=opset,
            input_names=inputs,
            output_names=outputs,
            inputs_as_nchw=turned or None,
            custom_op_handlers={"Erfc": (_erfc, [])},
        )
        converted = optimizer.optimize_graph(converted, True, optimizers=passes)
        model = converted.make_model(graph.model.name)
    for ports, names in ((model.graph.input, inputs), (model.graph.output, outputs)):
        by_name = {port.name: port for port in ports}
        ordered = [by_name[name] for name in names]
        del ports[:]
        ports.extend(ordered)
    return model


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """Conversion handler for erfc(x) = 1 − erf(x), which Keras's gelu uses."""
    from tf2onnx.utils import make_name, map_onnx_to_numpy_type

    shape, dtype = context.get_shape(node.output[0]), context.get_dtype(node.output[0])
    context.remove_node(node.name)
    erf = context.make_node("Erf", [node.input[0]], shapes=[shape], dtypes=[dtype])
    one = context.make_const(make_name("one"), np.ones((), map_onnx_to_numpy_type(dtype)))
    context.make_node(
        "Sub", [one.output[0], erf.output[0]], name=name, outputs=node.output,
        shapes=[shape], dtypes=[dtype],
    )  # fmt: skip


def _freeze(graph: NamedFunction, batch_size: int | None) -> tuple[Any, list[str], list[str]]:
    """Returns (frozen graph without function calls, names of inputs, names of outputs)."""
    from tf2onnx import tf_loader

    from tfkd.keras_internals import convert_variables_to_constants_v2

    concrete = graph.function(batch_size).get_concrete_function()
    named = concrete.structured_outputs
    outputs = [named[name].name for name in graph.outputs]
    frozen = convert_variables_to_constants_v2(
        concrete, lower_control_flow=False, aggressive_inlining=True
    )
    # The inputs of `concrete` would include captured constants of the model.
    inputs = [t.name for t in frozen.inputs]
    definition = frozen.graph.as_graph_def(add_shapes=True)
    for holder in (*definition.node, *definition.library.function):
        for key in _NO_INLINE:
            if key in holder.attr:
                del holder.attr[key]
    with tf.device("/cpu:0"), tf.Graph().as_default():
        tf.import_graph_def(definition, name="")
        return tf_loader.tf_optimize(inputs, outputs, definition), inputs, outputs


def _foreign(model: Any, opset: int) -> dict[str, list[str]]:
    """Operation types in the result that ONNX lacks, each with the names of its nodes."""
    onnx = require("onnx")
    found: dict[str, list[str]] = {}
    for node in all_nodes(model.graph):
        standard = node.domain in ("", "ai.onnx")
        if not standard or not onnx.defs.has(node.op_type, opset, node.domain):
            found.setdefault(node.op_type, []).append(node.name)
    return found
