"""TFLite metadata of a detector: input scaling, output tensors, labels.

It is a flatbuffer inside the file under the name TFLITE_METADATA, which Android's and
MediaPipe's object detectors require. It is written by the slot numbers of the schema,
since only MediaPipe itself has a writer for it:
https://github.com/google-ai-edge/mediapipe/blob/master/mediapipe/tasks/metadata/metadata_schema.fbs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfkd.formats.detector_recipe import LABELS, DetectorRecipe

NAME = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
# The first metadata parser version that supports groups of output tensors.
_PARSER = "1.2.0"
_RGB, _GRAYSCALE = 1, 2
_IMAGE, _BOXES, _FEATURES = 2, 3, 1  # members of the union ContentProperties
_NORMALIZATION = 1  # member of the union ProcessUnitOptions
_VALUE_LABELS = 3  # TENSOR_VALUE_LABELS: line i of the labels names the value i
_BOUNDARIES = 1  # BoundingBoxType; CoordinateType stays at its default 0, ratios
_LEFT_TOP_RIGHT_BOTTOM = (1, 0, 3, 2)  # their positions in (ymin, xmin, ymax, xmax)
_NAMES = ("location", "category", "score", "number of detections")


class Writer:
    """Writes the tables of a flatbuffer by slot number, inner tables before outer ones."""

    def __init__(self) -> None:
        import flatbuffers  # A dependency of TensorFlow.

        self.builder = flatbuffers.Builder(1024)

    def text(self, value: str) -> int:
        return int(self.builder.CreateString(value))

    def tables(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def numbers(self, values: Sequence[float], kind: str = "Float32") -> int:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            getattr(self.builder, f"Prepend{kind}")(value)
        return int(self.builder.EndVector())

    def table(self, offsets: dict[int, int], **numbers: dict[int, int]) -> int:
        """Adds a table of references {slot: offset} and numbers {slot: value} by type."""
        slots = [*offsets, *(slot for row in numbers.values() for slot in row)]
        self.builder.StartObject(max(slots, default=-1) + 1)
        for slot, offset in offsets.items():
            self.builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for kind, row in numbers.items():
            for slot, value in row.items():
                getattr(self.builder, f"Prepend{kind}Slot")(slot, value, 0)
        return int(self.builder.EndObject())

    def finish(self, root: int) -> bytes:
        self.builder.Finish(root, file_identifier=_IDENTIFIER)
        return bytes(self.builder.Output())


def metadata(recipe: DetectorRecipe) -> bytes:
    """The metadata of a detector as the bytes of a flatbuffer."""
    writer = Writer()
    outputs = _outputs(writer)
    group = writer.table(
        {0: writer.text("detection_result"), 1: writer.tables([writer.text(n) for n in _NAMES[:3]])}
    )
    graph = writer.table(
        {
            2: writer.tables([_image(writer, recipe)]),
            3: writer.tables(outputs),
            8: writer.tables([group]),
        }
    )
    root = {
        0: writer.text("ObjectDetector"),
        1: writer.text("Finds objects of known classes in an image, each with a box."),
        3: writer.tables([graph]),
        7: writer.text(_PARSER),
    }
    return writer.finish(writer.table(root))


def _image(writer: Writer, recipe: DetectorRecipe) -> int:
    """TensorMetadata of the input: color space, normalization and value range of the image."""
    color = _GRAYSCALE if recipe.size[2] == 1 else _RGB
    content = writer.table({1: writer.table({}, Int8={0: color})}, Uint8={0: _IMAGE})
    options = writer.table({0: writer.numbers(recipe.mean), 1: writer.numbers(recipe.std)})
    unit = writer.table({1: options}, Uint8={0: _NORMALIZATION})
    low, high = [0.0], [255.0]
    if not recipe.pixels:
        pairs = list(zip(recipe.mean, recipe.std, strict=True))
        low, high = ([(pixel - m) / s for m, s in pairs] for pixel in (0, 255))
    return writer.table(
        {
            0: writer.text("image"),
            1: writer.text("The image to look for objects in."),
            3: content,
            4: writer.tables([unit]),
            5: writer.table({0: writer.numbers(high), 1: writer.numbers(low)}),
        }
    )


def _outputs(writer: Writer) -> list[int]:
    """TensorMetadata of boxes, classes, scores and count, in this order."""
    order = writer.numbers(_LEFT_TOP_RIGHT_BOTTOM, "Uint32")
    boxes = writer.table({0: order}, Int8={1: _BOUNDARIES})
    labels = writer.table({0: writer.text(LABELS)}, Int8={2: _VALUE_LABELS})
    texts = ("Boxes of the objects.", "Classes.", "Scores.", "How many objects there are.")
    found = []
    for name, text in zip(_NAMES, texts, strict=True):
        slots = {0: writer.text(name), 1: writer.text(text)}
        if name == "category":
            slots[6] = writer.tables([labels])
        kind, properties = _FEATURES, 0
        if name == "location":
            kind, properties = _BOXES, boxes
        content: dict[int, Any] = {1: properties or writer.table({})}
        if name != _NAMES[3]:
            # ValueRange from axis 2 to 2: one row per object.
            content[2] = writer.table({}, Int32={0: 2, 1: 2})
        slots[3] = writer.table(content, Uint8={0: kind})
        found.append(writer.table(slots))
    return found
