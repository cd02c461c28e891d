"""TFLite's detection post-processing behind a network that is converted already.

TFLite_Detection_PostProcess suppresses doubles, in float. The network in front of it is
the file that `to_tflite` writes, byte for byte its tensors and operations: so whatever
quantizes it leaves the post-processing alone, above all the softmax, whose 8-bit form
has a last step of 1/256 and makes ties of scores.

The operation decodes boxes too, but does not cut them at the image's border before it
suppresses, as `tfkd.detection.decode` does. So boxes are cut in front of it, and reach
it as the offsets of what is left of them.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/kernels/detection_postprocess.cc
"""

from __future__ import annotations

from typing import Any

from tfkd.export import converter
from tfkd.export.detector import flatbuffer, tflite_metadata
from tfkd.formats.detector_recipe import OPERATION, OUTPUTS, DetectorRecipe

# A score that is none: the operation takes what lies at the threshold.
_SMALLEST = 1e-6
# (x, y, w, h) to (y, x, h, w), and back.
_Y_FIRST = [1, 0, 3, 2]


def add_postprocess(model: Any, recipe: DetectorRecipe) -> None:
    """Adds the operation to a network, and the metadata.

    Args:
        model: of `detection_flatbuffer.opened`, with float outputs, batch size 1 and one
            signature. It is changed.
        recipe: of the detector.
    """
    schema = flatbuffer.schema()
    tail = flatbuffer.opened(_tail(recipe))
    ends = {entry.name.decode(): entry.tensorIndex for entry in model.signatureDefs[0].outputs}
    # The signature of the tail gives its inputs by name; in the file they have any order.
    starts = {entry.name.decode(): entry.tensorIndex for entry in tail.signatureDefs[0].inputs}
    # A constant from now on. As one of the tail, the converter would write parts of it anew.
    buffer = schema.BufferT()
    buffer.data = recipe.priors[:, _Y_FIRST].tobytes()
    tail.subgraphs[0].tensors[starts["anchors"]].buffer = len(tail.buffers)
    tail.buffers.append(buffer)
    joined = {starts[key]: ends[recipe.options[key]] for key in ("boxes", "classes")}
    outputs = _append(model, tail, joined)
    _name_outputs(schema, model, outputs, recipe)
    _add_metadata(schema, model, tflite_metadata.metadata(recipe))


def _tail(recipe: DetectorRecipe) -> bytes:
    """The post-processing alone, as a TFLite file."""
    import tensorflow as tf

    from tfkd.detection import boxes as box_math

    options = recipe.options
    count = len(recipe.priors)
    classes = len(recipe.labels) + int(options["background"])
    variances = _variances(recipe)

    @tf.function(experimental_implements=_operation(recipe))
    def operation(boxes: Any, scores: Any, anchors: Any) -> Any:
        return (tf.constant(0.0),) * 4  # the converter puts the operation here

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
        # What lies outside the image is nothing.
        sides = tf.reduce_min(boxes[..., 2:] - boxes[..., :2], -1, keepdims=True)
        scores *= tf.cast(sides > 0, tf.float32)
        offsets = tf.gather(box_math.encode(boxes, priors, variances), _Y_FIRST, axis=-1)
        return dict(zip("0123", operation(offsets, scores, anchors), strict=True))

    module = tf.Module()
    module.run = run
    return converter.convert(module, run, "float32", custom_ops=True)


def _variances(recipe: DetectorRecipe) -> list[float]:
    """Of x, y, width and height, whatever their order in the outputs."""
    values = recipe.options["variances"]
    return [values[i] for i in _Y_FIRST] if recipe.options["order"] == "yxhw" else list(values)


def _operation(recipe: DetectorRecipe) -> str:
    """The operation and its attributes as the converter wants to be told."""
    options = recipe.options
    agnostic = options["class_agnostic"]
    numbers: dict[str, Any] = {
        "max_detections": options["max_detections"],
        "max_classes_per_detection": 1,
        "detections_per_class": options["max_detections"],
        # The fast way looks at the best class of each box and suppresses across classes.
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
        text = str(value).lower()
        rows.append(f'attr {{ key: "{key}" value {{ {kind}: {text} }} }}')
    return " ".join(rows)


def _append(model: Any, tail: Any, joined: dict[int, int]) -> list[int]:
    """Appends graph `tail` to `model`, its inputs joined; returns the new outputs."""
    graph, added = model.subgraphs[0], tail.subgraphs[0]
    codes, buffers = len(model.operatorCodes), len(model.buffers)
    model.operatorCodes.extend(tail.operatorCodes)
    model.buffers.extend(tail.buffers)
    place = {-1: -1, **joined}  # -1: an optional input that is not there
    for index, tensor in enumerate(added.tensors):
        if index not in place:
            # Buffer 0 is empty, and stands for no constant.
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
    """Names the four outputs, in the graph and in the signature, and gives them shapes."""
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


def _add_metadata(schema: Any, model: Any, text: bytes) -> None:
    buffer = schema.BufferT()
    buffer.data = text
    entry = schema.MetadataT()
    entry.name, entry.buffer = tflite_metadata.NAME.encode(), len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
