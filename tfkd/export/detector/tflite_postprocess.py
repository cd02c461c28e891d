"""Appending TFLite's post-processing (decoding and NMS) to a converted detector.

TFLite_Detection_PostProcess does non-maximum suppression in float. The tensors and
operations of the network before it are exactly those of the file that `to_tflite`
writes. So quantization does not affect the post-processing, in particular not the
softmax, whose 8-bit form has steps of 1/256 and produces tied scores.

The operation decodes boxes, too, but does not clip them to the image before it
suppresses, as `tfkd.detection.decode` does. So boxes are decoded, clipped, and encoded
again as offsets before it.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/kernels/detection_postprocess.cc
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkd.detection import boxes as box_math
from tfkd.export import converter
from tfkd.export.detector import flatbuffer, tflite_metadata
from tfkd.formats.detector_recipe import OPERATION, OUTPUTS, DetectorRecipe

# The smallest score threshold: the operation keeps scores equal to it, and 0 marks no object.
_SMALLEST = 1e-6
# (x, y, w, h) to (y, x, h, w), and back.
_Y_FIRST = [1, 0, 3, 2]


def add_postprocess(model: Any, recipe: DetectorRecipe) -> None:
    """Appends the operation and the metadata to a network.

    Args:
        model: a file from `flatbuffer.opened` with float outputs, batch size 1 and one
            signature; changed in place.
        recipe: the detector's recipe.
    """
    schema = flatbuffer.schema()
    tail = flatbuffer.opened(_tail(recipe))
    ends = {entry.name.decode(): entry.tensorIndex for entry in model.signatureDefs[0].outputs}
    # The tail's inputs are found by name in its signature, since their order is arbitrary.
    starts = {entry.name.decode(): entry.tensorIndex for entry in tail.signatureDefs[0].inputs}
    # The anchors become a constant only here: the converter would duplicate parts of it.
    buffer = schema.BufferT()
    buffer.data = recipe.priors[:, _Y_FIRST].tobytes()
    tail.subgraphs[0].tensors[starts["anchors"]].buffer = len(tail.buffers)
    tail.buffers.append(buffer)
    joined = {starts[key]: ends[recipe.options[key]] for key in ("boxes", "classes")}
    _name_outputs(schema, model, _append(model, tail, joined), recipe)
    add_metadata(schema, model, tflite_metadata.metadata(recipe))


def _tail(recipe: DetectorRecipe) -> bytes:
    """The post-processing alone as the bytes of a TFLite file."""
    options = recipe.options
    count = len(recipe.priors)
    classes = len(recipe.labels) + int(options["background"])
    variances = _variances(recipe)

    @tf.function(experimental_implements=_operation(recipe))
    def operation(boxes: Any, scores: Any, anchors: Any) -> Any:
        return (tf.constant(0.0),) * 4  # The converter replaces the call by the operation.

    @tf.function(
        input_signature=[
            tf.TensorSpec([1, count, 4], tf.float32, "boxes"),
            tf.TensorSpec([1, count, classes], tf.float32, "classes"),
            tf.TensorSpec([count, 4], tf.float32, "anchors"),
        ]
    )
    def run(boxes: Any, classes: Any, anchors: Any) -> Any:
        priors = tf.gather(anchors, _Y_FIRST, axis=-1)  # x first again
        boxes = box_math.decode_offsets(boxes, priors, options["variances"], options["order"])
        boxes = box_math.clip(boxes)
        scores = tf.nn.softmax(classes) if options["background"] else tf.sigmoid(classes)
        # A box outside the image has no area after clipping, and gets the score 0.
        sides = tf.reduce_min(boxes[..., 2:] - boxes[..., :2], -1, keepdims=True)
        scores *= tf.cast(sides > 0, tf.float32)
        offsets = tf.gather(box_math.encode(boxes, priors, variances), _Y_FIRST, axis=-1)
        return dict(zip("0123", operation(offsets, scores, anchors), strict=True))

    module = tf.Module()
    module.run = run
    return converter.convert(module, run, "float32", custom_ops=True)


def _variances(recipe: DetectorRecipe) -> list[float]:
    """The variances of x, y, width and height, in this order."""
    values = recipe.options["variances"]
    return [values[i] for i in _Y_FIRST] if recipe.options["order"] == "yxhw" else list(values)


def _operation(recipe: DetectorRecipe) -> str:
    """The operation and its attributes in the text format of `experimental_implements`."""
    options = recipe.options
    agnostic = options["class_agnostic"]
    numbers: dict[str, Any] = {
        "max_detections": options["max_detections"],
        "max_classes_per_detection": 1,
        "detections_per_class": options["max_detections"],
        # Fast NMS considers the best class of each box only and suppresses across classes.
        "use_regular_nms": not agnostic,
        "nms_score_threshold": max(float(options["score_threshold"]), _SMALLEST),
        "nms_iou_threshold": float(options["iou_threshold"]),
        "num_classes": len(recipe.labels),
    }
    for axis, variance in zip("xywh", _variances(recipe), strict=True):
        numbers[f"{axis}_scale"] = 1.0 / variance
    rows = [f'name: "{OPERATION}"']
    for key, value in numbers.items():
        kind = {bool: "b", int: "i", float: "f"}[type(value)]
        rows.append(f'attr {{ key: "{key}" value {{ {kind}: {str(value).lower()} }} }}')
    return " ".join(rows)


def _append(model: Any, tail: Any, joined: dict[int, int]) -> list[int]:
    """Appends graph `tail` to `model`, with its inputs connected; returns the new outputs."""
    graph, added = model.subgraphs[0], tail.subgraphs[0]
    codes, buffers = len(model.operatorCodes), len(model.buffers)
    model.operatorCodes.extend(tail.operatorCodes)
    model.buffers.extend(tail.buffers)
    place = {-1: -1, **joined}  # −1 marks an omitted optional input.
    for index, tensor in enumerate(added.tensors):
        if index not in place:
            # Buffer 0 is empty by convention: the tensor is not constant.
            tensor.buffer = tensor.buffer + buffers if tensor.buffer else 0
            tensor.name = b"postprocess/" + (tensor.name or b"")
            place[index] = len(graph.tensors)
            graph.tensors.append(tensor)
    outputs: list[int] = []
    for operator in added.operators:
        operator.opcodeIndex += codes
        operator.inputs = [place[int(i)] for i in operator.inputs]
        operator.outputs = [place[int(i)] for i in operator.outputs]
        graph.operators.append(operator)
        if tail.operatorCodes[operator.opcodeIndex - codes].customCode == OPERATION.encode():
            outputs = operator.outputs
    return outputs


def _name_outputs(schema: Any, model: Any, outputs: list[int], recipe: DetectorRecipe) -> None:
    """Sets names and shapes of the four outputs, in the graph and in the signature."""
    graph = model.subgraphs[0]
    count = recipe.options["max_detections"]
    shapes = ([1, count, 4], [1, count], [1, count], [1])
    graph.outputs = outputs
    entries = []
    for index, name, shape in zip(outputs, OUTPUTS, shapes, strict=True):
        graph.tensors[index].name = name.encode()
        graph.tensors[index].shape = shape
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), index
        entries.append(entry)
    model.signatureDefs[0].outputs = entries


def add_metadata(schema: Any, model: Any, text: bytes) -> None:
    """Adds the bytes of a metadata flatbuffer to a file."""
    buffer = schema.BufferT()
    buffer.data = text
    entry = schema.MetadataT()
    entry.name, entry.buffer = tflite_metadata.NAME.encode(), len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
