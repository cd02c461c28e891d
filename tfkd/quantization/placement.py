"""Decides which layers compute in integers, and which tensors get a range.

A range costs accuracy, and each one that the runtime doesn't have makes training
differ from what is deployed. So the places are those of the runtimes:

* A convolution or dense layer, the batch normalization after it and the ReLU
  after that are one integer kernel: a **unit**, with one range, at its end. A
  sum and the ReLU after it are one, too.
* What only moves numbers keeps the grid of its input.
* All else that computes has a range at its output, and so has each output of
  the model.

TensorRT needs fewer: a tensor is quantized there if a layer that is fast in
integers reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import tf_keras as keras

from tfkd.quantization import layer_roles
from tfkd.quantization.operations import Operation
from tfkd.quantization.report import FLOAT, FUSED, INT8, OUTPUT_ONLY, SAME_GRID, Decision


@dataclasses.dataclass(eq=False)
class Place:
    """What is being decided for one call: a `Decision` that may still change."""

    call: Operation
    action: str = INT8
    output: bool = True
    tensorrt: bool = False
    why: str = ""
    unit: Operation | None = None  # the first call of the unit that it belongs to
    end: bool = True  # of its unit

    def decision(self) -> Decision:
        """As it is now."""
        return Decision(
            self.call.name,
            type(self.call.layer).__name__,
            self.action,
            self.output,
            self.tensorrt,
            self.why,
            self.call.index,
        )


Places = dict[Operation, Place]


def place(
    calls: Sequence[Operation], target: str, fallback: str, floats: Mapping[str, str]
) -> list[Decision]:
    """Decides for every call of a flat model.

    Args:
        calls: as `operations_of` gives them.
        target: "tflite", "tensorrt" or "both".
        fallback: for layers without an integer form: "output_only", "noop" or
            "error".
        floats: layer name → why the user wants it in float.

    Raises:
        ValueError: with fallback "error", if there are such layers.
    """
    if fallback == "error":
        _refuse_unknown(calls, floats)
    places = {call: Place(call) for call in calls}
    for call in calls:
        _first_guess(places[call], fallback, floats)
    for call in calls:
        _join_unit(places, call)
    for call in calls:
        _spare_bins(places, call)
        _spare_floats(places, call)
    if target != "tensorrt":
        for call in calls:
            if call.kind.role == layer_roles.CONCAT and places[call].output:
                _share_grid(places, call)
        _follow_grids(places)
    _mark_tensorrt(places, free=target == "tensorrt")
    if target == "tensorrt":
        _keep_marked(places)
    return [places[call].decision() for call in calls]


def _refuse_unknown(calls: Sequence[Operation], floats: Mapping[str, str]) -> None:
    found = [
        f"{call.name!r} ({type(call.layer).__name__}: {call.kind.why})"
        for call in calls
        if call.kind.role == layer_roles.UNKNOWN and call.name not in floats
    ]
    if found:
        raise ValueError(
            "`fallback`: expected layers that all have a form in 8-bit integers with 'error', "
            f"received {', '.join(found)}. Name them in `skip`, or pass "
            "fallback='output_only' (only their outputs are quantized) or 'noop' (they stay float)."
        )


def _first_guess(spot: Place, fallback: str, floats: Mapping[str, str]) -> None:
    """What follows from the layer alone."""
    call, role = spot.call, spot.call.kind.role
    if role == layer_roles.INTEGER:
        spot.action, spot.output, spot.why = FLOAT, False, "holds no floating numbers"
    elif call.name in floats:
        spot.action, spot.output, spot.why = FLOAT, False, floats[call.name]
    elif role == layer_roles.UNKNOWN:
        spot.action = OUTPUT_ONLY if fallback == "output_only" else FLOAT
        spot.output = fallback == "output_only"
        spot.why = call.kind.why
    elif role == layer_roles.SAME:
        spot.action, spot.output, spot.why = SAME_GRID, False, "keeps the grid of its input"
    elif call.kind.fixed:
        spot.why = "the operation fixes its range"
    elif role == layer_roles.INPUT:
        spot.why = "input of the model"


def _join_unit(places: Places, first: Operation) -> None:
    """Joins what follows `first` and is computed in one kernel with it."""
    role = first.kind.role
    starts = role in (layer_roles.WEIGHTED, layer_roles.NORM, layer_roles.SUM)
    spot = places[first]
    if not starts or spot.action != INT8 or spot.unit is not None:
        return
    spot.unit, last = first, first
    while not last.kind.closed and last.kind.role != layer_roles.RELU:
        reader = last.only_reader
        if reader is None or len(reader.inputs) != 1 or places[reader].action != INT8:
            break
        # The same kernel can't be folded with several batch normalizations.
        fold = (
            reader.kind.role == layer_roles.NORM
            and last.kind.role == layer_roles.WEIGHTED
            and not (last.shared or reader.shared)
        )
        if not fold and reader.kind.role != layer_roles.RELU:
            break
        places[last].output = places[last].end = False
        where = places[reader]
        where.unit, where.action, where.why = first, FUSED, f"one kernel with {first.name!r}"
        last = reader
    if role == layer_roles.NORM and not spot.why:
        spot.why = "a scale and an offset of each channel"


def _spare_bins(places: Places, call: Operation) -> None:
    """Takes the range of an input away that only bins read: 8 bits would move it to others."""
    spot, reader = places[call], call.only_reader
    if reader is None or call.kind.role != layer_roles.INPUT:
        return
    if isinstance(reader.layer, keras.layers.Discretization):
        spot.action, spot.output, spot.why = FLOAT, False, f"only {reader.name!r} reads it, as bins"


def _spare_floats(places: Places, call: Operation) -> None:
    """Takes the range away between layers that all compute in float.

    It would save nothing, and 8 bits don't hold what a logarithm reads next.
    """
    spot = places[call]
    if spot.action == OUTPUT_ONLY and _only_floats_read(places, call):
        spot.action, spot.output = FLOAT, False
        spot.why += "; only layers without one read it"


def _only_floats_read(places: Places, call: Operation) -> bool:
    """True if the tensor, or what is moved of it, goes to layers without an integer form."""
    if call.is_output or not call.readers:
        return False
    return all(
        _only_floats_read(places, reader)
        if reader.kind.role == layer_roles.SAME
        else reader.kind.role == layer_roles.UNKNOWN
        for reader in call.readers
    )


def _share_grid(places: Places, concat: Operation) -> None:
    """Takes the ranges of a concatenation's inputs away where nobody else reads them.

    TFLite has one grid for all inputs and the output of a concatenation. A
    range on an input would be rounded twice: to its own grid, then to that of
    the output. Inputs that others read, too, keep theirs and are rounded again.
    """
    for source in concat.inputs:
        reader = concat
        while (
            source.kind.role == layer_roles.SAME and source.only_reader is reader and source.inputs
        ):
            source, reader = source.inputs[0], source
        spot = places[source]
        roles = (
            layer_roles.WEIGHTED,
            layer_roles.NORM,
            layer_roles.RELU,
            layer_roles.SUM,
            layer_roles.COMPUTE,
        )
        if source.only_reader is not reader or source.kind.role not in roles or not spot.output:
            continue
        if spot.action in (INT8, FUSED) and not source.kind.fixed:
            spot.output = False
            note = f"on the grid of {concat.name!r}, its only reader"
            spot.why = f"{spot.why}; {note}" if spot.why else note


def _follow_grids(places: Places) -> None:
    """What reads a tensor that is on no grid computes in float, whatever it could do."""
    on_grid: dict[Operation, bool] = {}
    for call, spot in places.items():
        loose = next((other for other in call.inputs if not on_grid[other]), None)
        role = call.kind.role
        if loose is not None and loose.kind.role != layer_roles.INTEGER:
            why = f"reads {loose.name!r}, which stays float"
            if role == layer_roles.SAME:
                spot.action, spot.why = FLOAT, why
            elif spot.action == INT8:
                spot.action, spot.why = OUTPUT_ONLY, why
            elif spot.action == FUSED and spot.unit and places[spot.unit].action == OUTPUT_ONLY:
                spot.action = OUTPUT_ONLY if spot.output else FLOAT
        if role == layer_roles.SAME:
            on_grid[call] = spot.action == SAME_GRID
        else:
            # A unit's inner tensors, and those on a concatenation's grid, count as on one.
            on_grid[call] = spot.output or spot.action in (INT8, FUSED) or not spot.end


def _mark_tensorrt(places: Places, free: bool) -> None:
    """Marks what TensorRT has to read in 8 bits.

    Args:
        places: all of them.
        free: a tensor may get a range that it had not yet.
    """
    # https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
    order = {call: i for i, call in enumerate(places)}

    def mark(call: Operation) -> None:
        while call.kind.role == layer_roles.SAME and call.inputs:
            call = call.inputs[0]
        spot = places[call]
        if spot.output or (free and call.kind.role != layer_roles.INTEGER):
            spot.tensorrt = spot.output = True

    for call, spot in places.items():
        is_int8 = spot.action == INT8
        if is_int8 and call.kind.role in (layer_roles.WEIGHTED, layer_roles.POOL):
            for source in call.inputs:
                mark(source)
    for call, spot in places.items():
        if call.kind.role != layer_roles.SUM or spot.action != INT8 or len(call.inputs) < 2:
            continue
        # A convolution and the sum after it are one kernel, if its result is not
        # rounded in between; the other branches come in as 8 bits.
        open_ = [source for source in call.inputs if _is_open(places, source)]
        kept = max(open_, key=lambda source: order[source], default=None)
        for source in call.inputs:
            if source is not kept:
                mark(source)


def _is_open(places: Places, source: Operation) -> bool:
    """True for a convolution (and its batch normalization) that only the sum reads."""
    # A dropout between them is not there in inference.
    while type(source.layer) in layer_roles.IDENTITIES and source.only_reader and source.inputs:
        source = source.inputs[0]
    spot = places[source]
    unit = spot.unit
    return (
        source.only_reader is not None
        and source.kind.role in (layer_roles.WEIGHTED, layer_roles.NORM)
        and not source.kind.closed
        and unit is not None
        and unit.kind.role == layer_roles.WEIGHTED
        and places[unit].action == INT8
    )


def _keep_marked(places: Places) -> None:
    """For TensorRT alone: no range but those that it reads."""
    fast = (layer_roles.WEIGHTED, layer_roles.POOL, layer_roles.SUM, layer_roles.INPUT)
    for call, spot in places.items():
        spot.output = spot.tensorrt
        first = spot.unit or call
        in_float = spot.action in (INT8, FUSED) and first.kind.role not in fast
        if in_float or spot.action in (OUTPUT_ONLY, FLOAT):
            spot.action = OUTPUT_ONLY if spot.output else FLOAT
        if in_float:
            spot.why = "TensorRT computes it in float"
        elif call.kind.role == layer_roles.INPUT and not spot.output:
            spot.action, spot.why = FLOAT, "nothing reads it in 8 bits"
