"""Placement of quantizers: which layers compute in int8, and which tensors are quantized.

Each quantizer costs accuracy, and one that the runtime does not have makes training differ
from deployment. So quantizers are placed where the runtimes requantize:

* A convolution or dense layer, the batch normalization after it and the ReLU after that are
  fused into one integer **kernel** with one range, at its end. So are a sum and the ReLU
  after it.
* Layers that only rearrange values keep the scale and zero point of their input.
* All other layers have a range at their output, and so has each output of the model.

TensorRT needs fewer: it quantizes the tensors that are read by layers which are fast in int8.
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
    """A mutable `Decision` for one call, while it is being made."""

    call: Operation
    action: str = INT8
    output: bool = True
    tensorrt: bool = False
    why: str = ""
    kernel: Operation | None = None  # the first call of the fused kernel that it belongs to
    end: bool = True  # whether it is the last call of that kernel

    def decision(self) -> Decision:
        """The decision in its current state."""
        name, kind = self.call.name, type(self.call.layer).__name__
        made = self.action, self.output, self.tensorrt, self.why
        return Decision(name, kind, *made, self.call.index)


Places = dict[Operation, Place]


def place(
    calls: Sequence[Operation], target: str, fallback: str, floats: Mapping[str, str]
) -> list[Decision]:
    """Decides how every call of a flat model is quantized.

    Args:
        calls: the operations of the model, from `operations_of`.
        target: "tflite", "tensorrt" or "both".
        fallback: for layers without an int8 implementation: "output_only", "noop" or
            "error".
        floats: layer name → why it is excluded by the user.

    Returns:
        One decision per call, in the same order.

    Raises:
        ValueError: with fallback "error", if there are layers without an int8
            implementation.
    """
    if fallback == "error":
        _refuse_unknown(calls, floats)
    places = {call: Place(call) for call in calls}
    for call in calls:
        _initial(places[call], fallback, floats)
    for call in calls:
        _fuse(places, call)
    for call in calls:
        _exclude_binned_input(places, call)
        _spare_floats(places, call)
    if target != "tensorrt":
        for call in calls:
            if call.kind.role == layer_roles.CONCAT and places[call].output:
                _share_grid(places, call)
        _propagate_float(places)
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


def _initial(spot: Place, fallback: str, floats: Mapping[str, str]) -> None:
    """Decides by the layer alone, without its neighbours."""
    call, role = spot.call, spot.call.kind.role
    if role == layer_roles.INTEGER:
        spot.action, spot.output, spot.why = FLOAT, False, "has no floating-point values"
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


def _fuse(places: Places, first: Operation) -> None:
    """Fuses the batch normalization and ReLU after `first` into its kernel."""
    role = first.kind.role
    starts = role in (layer_roles.WEIGHTED, layer_roles.NORM, layer_roles.SUM)
    spot = places[first]
    if not starts or spot.action != INT8 or spot.kernel is not None:
        return
    spot.kernel, last = first, first
    while not last.kind.closed and last.kind.role != layer_roles.RELU:
        reader = last.only_reader
        if reader is None or len(reader.inputs) != 1 or places[reader].action != INT8:
            break
        # Shared weights can't be folded with several batch normalizations.
        fold = (
            reader.kind.role == layer_roles.NORM
            and last.kind.role == layer_roles.WEIGHTED
            and not (last.shared or reader.shared)
        )
        if not fold and reader.kind.role != layer_roles.RELU:
            break
        places[last].output = places[last].end = False
        where = places[reader]
        where.kernel, where.action, where.why = first, FUSED, f"one kernel with {first.name!r}"
        last = reader
    if role == layer_roles.NORM and not spot.why:
        spot.why = "a scale and an offset of each channel"


def _exclude_binned_input(places: Places, call: Operation) -> None:
    """Keeps an input of a `Discretization` in float: rounding would move it to other bins."""
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
    """Removes the ranges of the inputs of a concatenation that nothing else reads.

    In TFLite all inputs and the output of a concatenation share scale and zero point. An
    input with a range of its own would be rounded twice, to its own grid and to that of the
    output. Inputs with other readers keep their range and are requantized.
    """
    for source in concat.inputs:
        reader = concat
        while (
            source.kind.role == layer_roles.SAME and source.only_reader is reader and source.inputs
        ):
            source, reader = source.inputs[0], source
        spot = places[source]
        own = source.kind.role in layer_roles.OWN_RANGE and spot.output
        if source.only_reader is not reader or not own:
            continue
        free = not (source.kind.fixed or source.kind.clips)
        if spot.action in (INT8, FUSED) and free:
            spot.output = False
            note = f"on the grid of {concat.name!r}, its only reader"
            spot.why = f"{spot.why}; {note}" if spot.why else note


def _propagate_float(places: Places) -> None:
    """Lets layers that read an unquantized tensor compute in float."""
    quantized: dict[Operation, bool] = {}
    for call, spot in places.items():
        source = next((other for other in call.inputs if not quantized[other]), None)
        role = call.kind.role
        if source is not None and source.kind.role != layer_roles.INTEGER:
            why = f"reads {source.name!r}, which stays float"
            if role == layer_roles.SAME:
                spot.action, spot.why = FLOAT, why
            elif spot.action == INT8:
                spot.action, spot.why = OUTPUT_ONLY, why
            elif spot.action == FUSED and spot.kernel and places[spot.kernel].action == OUTPUT_ONLY:
                spot.action = OUTPUT_ONLY if spot.output else FLOAT
        if role == layer_roles.SAME:
            quantized[call] = spot.action == SAME_GRID
        else:
            # Tensors inside a kernel, and those on the grid of a concatenation, count, too.
            quantized[call] = spot.output or spot.action in (INT8, FUSED) or not spot.end


def _mark_tensorrt(places: Places, free: bool) -> None:
    """Marks the tensors that need a QDQ pair in the file for TensorRT.

    See https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html

    Args:
        places: the decisions for all calls.
        free: whether tensors may get ranges that they do not have yet.
    """
    order = {call: i for i, call in enumerate(places)}

    def mark(call: Operation) -> None:
        while call.kind.role == layer_roles.SAME and call.inputs:
            call = call.inputs[0]
        spot = places[call]
        if spot.output or (free and call.kind.role != layer_roles.INTEGER):
            spot.tensorrt = spot.output = True

    for call, spot in places.items():
        if spot.action == INT8 and call.kind.role in (layer_roles.WEIGHTED, layer_roles.POOL):
            for source in call.inputs:
                mark(source)
    for call, spot in places.items():
        if call.kind.role != layer_roles.SUM or spot.action != INT8 or len(call.inputs) < 2:
            continue
        # TensorRT fuses a convolution with the sum after it, if its result is not quantized
        # in between; the other branches are read as int8.
        fusible = [source for source in call.inputs if _is_fusible(places, source)]
        fused = max(fusible, key=lambda source: order[source], default=None)
        for source in call.inputs:
            if source is not fused:
                mark(source)


def _is_fusible(places: Places, source: Operation) -> bool:
    """True for a convolution (and its batch normalization) that only the sum reads."""
    # Dropout and the like are removed in inference.
    while type(source.layer) in layer_roles.IDENTITIES and source.only_reader and source.inputs:
        source = source.inputs[0]
    spot = places[source]
    kernel = spot.kernel
    return (
        source.only_reader is not None
        and source.kind.role in (layer_roles.WEIGHTED, layer_roles.NORM)
        and not source.kind.closed
        and kernel is not None
        and kernel.kind.role == layer_roles.WEIGHTED
        and places[kernel].action == INT8
    )


def _keep_marked(places: Places) -> None:
    """For TensorRT alone: removes all ranges that it does not read."""
    fast = (layer_roles.WEIGHTED, layer_roles.POOL, layer_roles.SUM, layer_roles.INPUT)
    for call, spot in places.items():
        spot.output = spot.tensorrt
        in_float = spot.action in (INT8, FUSED) and (spot.kernel or call).kind.role not in fast
        if in_float or spot.action in (OUTPUT_ONLY, FLOAT):
            spot.action = OUTPUT_ONLY if spot.output else FLOAT
        if in_float:
            spot.why = "TensorRT computes it in float"
        elif call.kind.role == layer_roles.INPUT and not spot.output:
            spot.action, spot.why = FLOAT, "nothing reads it in 8 bits"
