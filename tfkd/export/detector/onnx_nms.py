"""Box decoding and non-maximum suppression as ONNX nodes after a detector's two outputs.

"onnx" ends in the standard operator NonMaxSuppression and computes the same as
`tfkd.detection.decode`: the best candidates of an image are selected first, so that
the rest works on a few hundred boxes.

"efficient_nms" ends in EfficientNMS_TRT, a plugin that comes with TensorRT. It gets
boxes that are already decoded and clipped to the image, since its own decoder does not
clip, and scores without the background, so that classes count from 0:
https://github.com/NVIDIA/TensorRT/tree/main/plugin/efficientNMSPlugin
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tfkd.formats.detector_numpy import MAX_LOG_SIZE
from tfkd.formats.detector_recipe import DetectorRecipe
from tfkd.formats.onnx_nodes import require

if TYPE_CHECKING:
    import onnx

PLUGIN = "EfficientNMS_TRT"
# onnx.checker skips nodes of foreign domains; TensorRT finds plugins by name in any domain.
_DOMAIN = "TRT"
EFFICIENT = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
STANDARD = ("boxes", "confidence", "classes", "num_detections")


class Tail:
    """Builder of nodes after the two outputs of a network; changes the model in place.

    Args:
        model: the `onnx.ModelProto` of the network.
        recipe: the detector's recipe.
        names: names of the network's outputs, in the order of the model's outputs.
    """

    def __init__(self, model: onnx.ModelProto, recipe: DetectorRecipe, names: list[str]):
        self.model, self.recipe, self.options = model, recipe, recipe.options
        self.count = 0
        ports = dict(zip(names, model.graph.output, strict=True))
        boxes, classes = (ports[self.options[key]] for key in ("boxes", "classes"))
        self.batch = boxes.type.tensor_type.shape.dim[0]
        self.inner = {port.name: f"network/{port.name}" for port in (boxes, classes)}
        self.boxes, self.classes = self.inner[boxes.name], self.inner[classes.name]
        for node in model.graph.node:
            node.input[:] = [self.inner.get(name, name) for name in node.input]
            node.output[:] = [self.inner.get(name, name) for name in node.output]
        del model.graph.output[:]

    def constant(self, name: str, value: ArrayLike, dtype: DTypeLike = np.float32) -> str:
        """Adds a constant; returns its name."""
        onnx = require("onnx")
        name = f"detections/{name}"
        if name not in {i.name for i in self.model.graph.initializer}:
            array = np.asarray(value, dtype)
            self.model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def nodes(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Adds a node with the given output names."""
        onnx = require("onnx")
        name = f"detections/{kind}_{self.count}"
        self.count += 1
        self.model.graph.node.append(
            onnx.helper.make_node(kind, inputs, outputs, name=name, **attributes)
        )

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output; returns its name."""
        output = f"detections/{kind}_{self.count}:0"
        self.nodes(kind, list(inputs), [output], **attributes)
        return output

    def integers(self, *values: int) -> str:
        """Adds an int64 vector, such as axes or a shape; returns its name."""
        return self.constant("integers_" + "_".join(map(str, values)), values, np.int64)

    def part(self, value: str, start: int, end: int) -> str:
        """value[..., start:end] of a tensor of rank 3."""
        return self.node("Slice", value, self.integers(start), self.integers(end), self.integers(2))

    def output(self, name: str, shape: list[int], integers: bool = False) -> None:
        """Declares a graph output of a shape without the batch axis."""
        onnx = require("onnx")
        kind = onnx.TensorProto.INT32 if integers else onnx.TensorProto.FLOAT
        batch = self.batch.dim_param or self.batch.dim_value
        port = onnx.helper.make_tensor_value_info(name, kind, [batch, *shape])
        self.model.graph.output.append(port)

    def scores(self) -> str:
        """Adds nodes for the class scores (B, P, C) without the background."""
        if not self.options["background"]:
            return self.node("Sigmoid", self.classes)
        number = len(self.recipe.labels) + 1
        return self.part(self.node("Softmax", self.classes, axis=-1), 1, number)

    def corners(self, offsets: str, low: str, sides: str) -> str:
        """Adds nodes that decode offsets to clipped corner boxes.

        Args:
            offsets: the offsets (B, K, 4).
            low: centers of the priors, broadcastable to (B, K, 2).
            sides: sizes of the priors, likewise.
        """
        scaled = self.node("Mul", offsets, self.constant("variances", self.options["variances"]))
        if self.options["order"] == "yxhw":
            scaled = self.node("Gather", scaled, self.integers(1, 0, 3, 2), axis=2)
        centers = self.node("Add", self.node("Mul", self.part(scaled, 0, 2), sides), low)
        logs = self.node("Min", self.part(scaled, 2, 4), self.constant("largest", MAX_LOG_SIZE))
        size = self.node("Mul", self.node("Exp", logs), sides)
        half = self.node("Mul", size, self.constant("half", 0.5))
        ends = self.node("Sub", centers, half), self.node("Add", centers, half)
        limits = self.constant("zero", 0), self.constant("one", 1)
        return self.node("Clip", self.node("Concat", *ends, axis=2), *limits)


def add_efficient_nms(model: onnx.ModelProto, recipe: DetectorRecipe, names: list[str]) -> None:
    """Appends EfficientNMS_TRT to the network."""
    onnx = require("onnx")
    tail, options = Tail(model, recipe, names), recipe.options
    centers = tail.constant("centers", recipe.priors[None, :, :2])
    sides = tail.constant("sides", recipe.priors[None, :, 2:])
    inputs = [tail.corners(tail.boxes, centers, sides), tail.scores()]
    attributes: dict[str, Any] = {
        "plugin_version": "1",
        "score_threshold": float(options["score_threshold"]),
        "iou_threshold": float(options["iou_threshold"]),
        "max_output_boxes": options["max_detections"],
        "background_class": -1,
        "score_activation": 0,
        "box_coding": 0,
    }
    if options["class_agnostic"]:  # The attribute exists since TensorRT 8.6.
        attributes["class_agnostic"] = 1
    tail.nodes(PLUGIN, inputs, list(EFFICIENT), domain=_DOMAIN, **attributes)
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    number = options["max_detections"]
    for name, shape in zip(EFFICIENT, ([1], [number, 4], [number], [number]), strict=True):
        tail.output(name, shape, name in ("num_detections", "detection_classes"))


def without_plugin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without EfficientNMS_TRT, whose outputs are the plugin's boxes and scores."""
    onnx = require("onnx")
    copy = type(model).FromString(model.SerializeToString())
    (plugin,) = [node for node in copy.graph.node if node.op_type == PLUGIN]
    copy.graph.node.remove(plugin)
    del copy.graph.output[:]
    for name in plugin.input:
        port = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        copy.graph.output.append(port)
    return copy


def add_standard_nms(model: onnx.ModelProto, recipe: DetectorRecipe, names: list[str]) -> None:
    """Appends ONNX's NonMaxSuppression to the network, with outputs of a fixed size."""
    tail, options = Tail(model, recipe, names), recipe.options
    number, priors = len(recipe.labels), len(recipe.priors)
    pool = min(options["candidates"], priors * number)
    count = min(options["max_detections"], pool)
    flat = tail.node("Reshape", tail.scores(), tail.integers(0, priors * number))
    tail.nodes("TopK", [flat, tail.integers(pool)], ["detections/score", "detections/pair"], axis=1)
    # Index in the flat scores = prior · number of classes + class.
    each = tail.constant("number", number, np.int64)
    prior, kind = (tail.node(op, "detections/pair", each) for op in ("Div", "Mod"))
    offsets = _picked(tail, tail.boxes, prior)
    chosen = tail.node("Gather", tail.constant("priors", recipe.priors), prior, axis=0)
    boxes = tail.corners(offsets, tail.part(chosen, 0, 2), tail.part(chosen, 2, 4))
    scores = _of_some_area(tail, boxes, "detections/score")
    mask = _kept(tail, boxes, scores, kind)
    tail.nodes(
        "TopK",
        [tail.node("Mul", scores, mask), tail.integers(count)],
        ["confidence", "detections/row"],
        axis=1,
    )
    _write(tail, tail.node("Greater", "confidence", tail.constant("zero", 0)), boxes, kind)
    for name, shape in zip(STANDARD, ([count, 4], [count], [count], []), strict=True):
        tail.output(name, shape, name in ("classes", "num_detections"))


def _picked(tail: Tail, values: str, rows: str) -> str:
    """Gathers rows: values (B, N, 4) and row indices (B, K) give (B, K, 4)."""
    return tail.node(
        "GatherND", values, tail.node("Unsqueeze", rows, tail.integers(2)), batch_dims=1
    )


def _of_some_area(tail: Tail, boxes: str, scores: str) -> str:
    """Scores (B, K), set to 0 for boxes without area."""
    sides = tail.node("Sub", tail.part(boxes, 2, 4), tail.part(boxes, 0, 2))
    area = tail.node("Mul", tail.part(sides, 0, 1), tail.part(sides, 1, 2))
    some = tail.node("Greater", area, tail.constant("zero", 0))
    some = tail.node("Cast", tail.node("Squeeze", some, tail.integers(2)), to=1)  # FLOAT
    return tail.node("Mul", scores, some)


def _kept(tail: Tail, boxes: str, scores: str, kind: str) -> str:
    """A mask (B, K) with 1 for the boxes that the suppression keeps."""
    options = tail.options
    rows = tail.node("Unsqueeze", scores, tail.integers(1))
    if not options["class_agnostic"]:
        kinds = np.arange(len(tail.recipe.labels)).reshape(1, -1, 1)
        own = tail.node(
            "Equal",
            tail.node("Unsqueeze", kind, tail.integers(1)),
            tail.constant("kinds", kinds, np.int64),
        )
        rows = tail.node("Mul", rows, tail.node("Cast", own, to=1))
    selected = tail.node(
        "NonMaxSuppression",
        boxes,
        rows,
        tail.integers(options["max_detections"]),
        tail.constant("iou_threshold", [options["iou_threshold"]]),
        tail.constant("score_threshold", [options["score_threshold"]]),
    )
    # (batch, class, row) → (batch, row)
    where = tail.node("Gather", selected, tail.integers(0, 2), axis=1)
    nothing = tail.node("Mul", scores, tail.constant("zero", 0))
    length = tail.node("Gather", tail.node("Shape", where), tail.integers(0), axis=0)
    ones = tail.node("Expand", tail.constant("one", 1), length)
    return tail.node("ScatterND", nothing, where, ones)


def _write(tail: Tail, real: str, boxes: str, kind: str) -> None:
    """Adds the outputs, padded with -1 after the last detection."""
    row = "detections/row"
    found = _picked(tail, boxes, row)
    shaped = tail.node("Unsqueeze", real, tail.integers(2))
    tail.nodes("Where", [shaped, found, tail.constant("nothing", -1)], ["boxes"])
    kinds = tail.node("Cast", tail.node("GatherElements", kind, row, axis=1), to=6)  # INT32
    tail.nodes("Where", [real, kinds, tail.constant("none", -1, np.int32)], ["classes"])
    tail.nodes(
        "ReduceSum",
        [tail.node("Cast", real, to=6), tail.integers(1)],
        ["num_detections"],
        keepdims=0,
    )
