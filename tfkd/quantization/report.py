"""`Decision` and `QuantizationReport`: how each layer call is quantized, and why."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from tfkd.results import Grid, Result

INT8, FUSED, SAME_GRID = "int8", "fused", "same grid"
OUTPUT_ONLY, FLOAT = "output only", "float"
ACTIONS = (INT8, FUSED, SAME_GRID, OUTPUT_ONLY, FLOAT)
# TFLite operations that may stand on either side of a dequantization.
_MOVING = ("RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "PAD", "PADV2")
# Parts of transformers that no int8 runtime computes in integers, by class or by function.
_ATTENTION = ("HeadAttention", "Attention", "AdditiveAttention", "MultiHeadAttention")
_IN_FLOAT = (*_ATTENTION, "LayerNormalization", "GroupNormalization", "UnitNormalization")
_FUNCTIONS = ("matmul", "einsum", "softmax")


@dataclasses.dataclass(frozen=True)
class Decision:
    """How one call of a layer is quantized.

    Attributes:
        layer: name of the layer in the quantized model.
        kind: name of its class.
        action: "int8": computed in integers; "fused": computed in one kernel with the
            preceding layer; "same grid": rearranges values and keeps the scale and zero
            point of its input; "output only": computed in float, with a quantized output;
            "float": not quantized.
        output: whether its output has a range of its own.
        tensorrt: whether the file for TensorRT quantizes this output.
        why: the reason for the decision.
        call: index of the call of the layer, from 0.
        note: remark of the calibration, if any.
    """

    layer: str
    kind: str
    action: str
    output: bool = False
    tensorrt: bool = False
    why: str = ""
    call: int = 0
    note: str = ""


@dataclasses.dataclass(frozen=True)
class QuantizationReport(Result):
    """The decisions for all layer calls, in the order of the data flow; `print` shows a table.

    Attributes:
        rows: tuple of `Decision`.
        target: of `quantize`.
    """

    rows: tuple[Decision, ...]
    target: str = "tflite"

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, layer: str, call: int = 0) -> Decision:
        """Returns the decision for a call of the layer called `layer`.

        Raises:
            KeyError: if there is none.
        """
        for row in self.rows:
            if (row.layer, row.call) == (layer, call):
                return row
        raise KeyError(f"no decision for call {call} of layer {layer!r}")

    def left_in_float(self, operations: Iterable[Mapping[str, str]]) -> list[str]:
        """Layers that count as integers, of which a TFLite file computes something in float.

        Args:
            operations: the file's float operations, from `tfkd.formats.litert.in_float`.

        Returns:
            Their names, each once. What an operation computes for several layers is none of
            theirs if one of them may compute in float; operations that only move values are
            left out.
        """
        found: dict[str, None] = {}
        for operation in operations:
            if operation["operation"] in _MOVING:
                continue
            parts = [f"/{part}/" for part in operation["tensor"].split(";")]
            here = [row for row in self.rows if any(f"/{row.layer}/" in part for part in parts)]
            if all(row.action in (INT8, FUSED) for row in here):
                found |= {row.layer: None for row in here}
        return list(found)

    @property
    def counts(self) -> dict[str, int]:
        """Action → number of decisions, for the actions that occur."""
        found = Counter(row.action for row in self.rows)
        return {action: found[action] for action in ACTIONS if found[action]}

    @property
    def advice(self) -> str:
        """What to try instead, for a TFLite file that would compute a transformer's parts in float.

        One sentence; "" if nothing stands between integers that should not.
        """
        found = [row for row in self.rows if row.action in (OUTPUT_ONLY, FLOAT) and _no_int8(row)]
        if not found or self.target == "tensorrt" or INT8 not in self.counts:
            return ""
        kinds = ", ".join(dict.fromkeys(row.kind for row in found))
        return (
            f"Advice: TFLite computes {len(found)} layers ({kinds}) in float between integers, "
            "with a conversion at each border, so the int8 file can be slower than the float file "
            "and hardly smaller than one with 8-bit weights alone: compare it with "
            'to_tflite(model, path, mode="dynamic") and mode="float16" of the float model, '
            "neither of which needs `quantize`."
        )

    def parts(self) -> list[Grid | str]:
        """A table with a row per decision, and the number of decisions of each kind."""
        head = ("layer", "kind", "decision", "range", "in TensorRT", "why")
        lines = [
            (
                row.layer + (f" (call {row.call + 1})" if row.call else ""),
                row.kind,
                row.action,
                "yes" if row.output else "",
                "yes" if row.tensorrt else "",
                "; ".join(text for text in (row.why, row.note) if text),
            )
            for row in self.rows
        ]
        counts = ", ".join(f"{count} {action}" for action, count in self.counts.items())
        ranges = sum(row.output for row in self.rows)
        notes = [f"{counts}; {ranges} ranges", self.advice]
        return [Grid(head, lines, left=len(head)), *filter(None, notes)]


def _no_int8(row: Decision) -> bool:
    """Whether a layer is attention, a softmax inside a model, or a normalization over features."""
    called = row.kind == "TFOpLambda" and any(name in row.layer for name in _FUNCTIONS)
    return called or row.kind in _IN_FLOAT
