"""What `model_sweep.py` does with a model: a function for each column of its table.

Each cell builds the model anew, has tfkd work on it, and compares what comes out with what
Keras computes, in NumPy and by limits of its own. It returns a note, or raises: `Wrong`
where the results differ.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from sweep_models import MODELS, Entry  # noqa: F401

import tfkd

# Largest error as a part of the output's range, and largest mean error where 8 bits compute.
EXACT, LOW_PRECISION, INT8_MEAN = 1e-4, 3e-2, 0.06
TEMPERATURE = 2.0
Named = dict[str, np.ndarray]


class Wrong(Exception):
    """What came out is not what the model computes."""


class NotApplicable(Exception):
    """Keras itself can't do what the cell begins with."""


def named(outputs: Any, names: Any = ()) -> Named:
    """Outputs of a model or file by name; the name of a single one is left out."""
    if isinstance(outputs, Mapping):
        values = {str(key): np.asarray(value) for key, value in outputs.items()}
        return values if len(values) > 1 else {"": next(iter(values.values()))}
    flat = tf.nest.flatten(outputs)
    if len(flat) == 1:
        return {"": np.asarray(flat[0])}
    names = list(names or ()) or [str(place) for place in range(len(flat))]
    return dict(zip(names, map(np.asarray, flat), strict=True))


def computed(model: Any, x: Any, step: int) -> Named:
    """What a Keras model computes, without state from batch to batch."""
    count, found = len(tf.nest.flatten(x)[0]), []
    for start in range(0, count, step):
        if hasattr(model, "reset_states"):
            model.reset_states()
        part = tf.nest.map_structure(lambda a: tf.constant(a[start : start + step]), x)  # noqa: B023
        found.append(named(model(part, training=False), getattr(model, "output_names", ())))
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def error(expected: np.ndarray, received: np.ndarray) -> tuple[float, float]:
    """Largest and mean error as a part of the range; infinite where shapes or text differ."""
    if expected.shape != received.shape:
        return np.inf, np.inf
    if expected.dtype.kind in "OSU":
        same = all(a == b for a, b in zip(expected.ravel(), received.ravel(), strict=True))
        return (0.0, 0.0) if same else (np.inf, np.inf)
    expected, received = expected.astype("float64"), received.astype("float64")
    if not np.isfinite(received).all():
        return np.inf, np.inf
    unit = np.ptp(expected) or np.abs(expected).max() or 1.0
    off = np.abs(expected - received) / unit
    return float(off.max()), float(off.mean())


def compare(expected: Named, received: Named, limit: float, mean: bool = False) -> str:
    """Raises Wrong unless the outputs are equal; returns a note on renamed outputs."""
    note = ""
    if len(expected) != len(received):
        raise Wrong(f"{len(received)} outputs, expected {len(expected)}: {list(received)}")
    if set(expected) != set(received):
        note = f"outputs are called {list(received)}, in the model {list(expected)}"
        left = dict(received)
        received = {}
        for name, value in expected.items():
            best = min(left, key=lambda other: error(value, left[other])[1])
            received[name] = left.pop(best)
    for name, value in expected.items():
        if value.shape != received[name].shape:
            raise Wrong(f"{name} has shape {received[name].shape}, expected {value.shape}")
        off = error(value, received[name])
        if not off[mean] <= limit:
            raise Wrong(f"{name} is off by {off[0]:.3g} of its range, {off[1]:.3g} in the mean")
    return note


def limit_of(entry: Entry) -> float:
    return LOW_PRECISION if entry.low else EXACT


def data_of(x: Any) -> Any:
    """Inputs as `data`: tuples of arrays would mean labels."""
    return list(x) if isinstance(x, tuple) else x


def losses_of(entry: Entry, model: Any) -> tuple[list[str], Any]:
    """(what each output is, the losses of `LogitsDistillation`)."""
    outputs = computed(model, entry.examples(model), entry.step(model))
    given = entry.heads
    heads = [given] * len(outputs) if isinstance(given, str) else list(given)
    kinds = {"values": "mse", "sigmoid": "binary_crossentropy"}
    losses = [kinds.get(head, "kl_divergence") for head in heads]
    if len(losses) == 1:
        return heads, losses[0]
    structure = model.output
    return heads, tf.nest.pack_sequence_as(structure, losses)


def expected_loss(head: str, teacher: np.ndarray, student: np.ndarray) -> float:
    """The mean loss of one output, in float64."""
    t, s = teacher.astype("float64"), student.astype("float64")
    if head == "values":
        return float(np.mean(np.square((t - s) / TEMPERATURE)))
    if head == "sigmoid":
        t, s = (np.log(z) - np.log1p(-z) for z in (t, s))
        p, q = (1 / (1 + np.exp(-z / TEMPERATURE)) for z in (t, s))
        kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    else:
        t, s = (np.log(z) if head == "softmax" else z for z in (t, s))
        p, q = (z / TEMPERATURE - _log_sum(z / TEMPERATURE) for z in (t, s))
        kl = np.exp(p) * (p - q)
    return float(TEMPERATURE**2 * np.mean(kl.sum(-1)))


def _log_sum(z: np.ndarray) -> np.ndarray:
    top = z.max(-1, keepdims=True)
    return top + np.log(np.exp(z - top).sum(-1, keepdims=True))


def distil(entry: Entry, folder: pathlib.Path) -> str:
    """Two models, the value of the loss, and two steps of training."""
    teacher, student = entry.fresh(0), entry.fresh(1)
    x, step = entry.examples(teacher), entry.step(teacher)
    heads, losses = losses_of(entry, teacher)
    loss = tfkd.losses.LogitsDistillation(TEMPERATURE, loss=losses)
    distiller = tfkd.Distiller(teacher, student, loss, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(1e-3), None)
    before, other = computed(teacher, x, step), computed(student, x, step)
    value = distiller.evaluate(x, batch_size=step, verbose=0, return_dict=True)
    wanted = sum(
        expected_loss(head, before[name], other[name])
        for head, name in zip(heads, before, strict=True)
    )
    got, limit = value["logits_distillation"], 20 * limit_of(entry)
    if not entry.masked and not abs(got - wanted) <= max(limit * abs(wanted), 1e-6):
        raise Wrong(f"the loss is {got:.6g}, expected {wanted:.6g}")
    weights = student.get_weights()
    distiller.fit(x, batch_size=step, epochs=1, verbose=0)
    compare(before, computed(teacher, x, step), limit_of(entry))
    moved = any((a != b).any() for a, b in zip(student.get_weights(), weights, strict=True))
    if student.trainable_weights and wanted > 1e-6 and not moved:
        raise Wrong("no weight of the student has changed")
    return ""


def prune(entry: Entry, folder: pathlib.Path) -> str:
    """Planned, zeroed, and cut: the cut model computes what the zeroed one does."""
    model, masked = entry.fresh(0), entry.fresh(0)
    x, step = entry.examples(model), entry.step(model)
    before = computed(model, x, step)
    plan = tfkd.pruning.plan(model, filter_rate=0.3)
    selection = tfkd.pruning.select(model, plan)
    tfkd.pruning.apply_selection(masked, selection)
    texts = any(np.asarray(one).dtype == object for one in tf.nest.flatten(x))
    small = tfkd.pruning.shrink(model, selection, verify=data_of(x) if texts else True)
    compare(before, computed(model, x, step), 0.0)
    compare(computed(masked, x, step), computed(small, x, step), limit_of(entry))
    if not small.count_params() < model.count_params():
        raise Wrong("the shrunk model is no smaller")
    return ""


def freeze(entry: Entry, folder: pathlib.Path) -> str:
    """A frozen copy with folded batch normalizations; the profile counts all weights."""
    model = entry.fresh(0)
    x, step = entry.examples(model), entry.step(model)
    copy = tfkd.frozen_copy(model, fold_batch_norm=True)
    note = compare(computed(model, x, step), computed(copy, x, step), limit_of(entry))
    counted = tfkd.report.profile(model, tf.nest.map_structure(lambda a: a.shape[1:], x)).params
    if counted != model.count_params():
        raise Wrong(f"the profile counts {counted} parameters, Keras {model.count_params()}")
    return note


def quantized(entry: Entry, target: str) -> tuple[Any, Any, Any]:
    """(model, quantized model, examples), calibrated."""
    model = entry.fresh(0)
    x = entry.examples(model)
    q = tfkd.quantization.quantize(model, target=target)
    tfkd.quantization.calibrate(q, data_of(x))
    return model, q, x


def quantize(entry: Entry, folder: pathlib.Path) -> str:
    """Quantized and calibrated: near the model; and saved and loaded: equal."""
    model, q, x = quantized(entry, "both")
    step = entry.step(model)
    note = compare(computed(model, x, step), computed(q, x, step), INT8_MEAN, mean=True)
    tfkd.quantization.save(q, folder / "q.npz")
    custom = dict(entry.custom) or None
    again = tfkd.quantization.load(folder / "q.npz", custom_objects=custom, safe_mode=False)
    compare(computed(q, x, step), computed(again, x, step), 1e-6)
    return note


def predicted(entry: Entry, path: pathlib.Path, x: Any) -> Named:
    """What a Predictor says of a file."""
    of_keras = {"custom_objects": dict(entry.custom) or None, "safe_mode": False}
    options = of_keras if path.suffix == ".keras" else {}
    with tfkd.runtime.Predictor(path, **options) as predict:
        predict(data_of(x))
        return named(predict(data_of(x)))


def exported(write: Callable[..., Any], name: str, int8: bool = False) -> Callable[..., str]:
    """The cell of an export of the float model: written, run, compared."""

    def cell(entry: Entry, folder: pathlib.Path) -> str:
        model = entry.fresh(0)
        x = entry.examples(model)
        write(model, folder / name, x)
        expected = computed(model, x, entry.step(model))
        limit = INT8_MEAN if int8 else limit_of(entry)
        return compare(expected, predicted(entry, folder / name, x), limit, mean=int8)

    return cell


def exported_quantized(write: Callable[..., Any], name: str, target: str) -> Callable[..., str]:
    """The cell of an export of the quantized model."""

    def cell(entry: Entry, folder: pathlib.Path) -> str:
        model, q, x = quantized(entry, target)
        write(q, folder / name, x)
        expected = computed(q, x, entry.step(model))
        return compare(expected, predicted(entry, folder / name, x), INT8_MEAN, mean=True)

    return cell


def keras_file(entry: Entry, folder: pathlib.Path) -> str:
    """The saved model, run by a Predictor."""
    model = entry.fresh(0)
    x = entry.examples(model)
    try:
        model.save(folder / "m.keras")
        keras.models.load_model(folder / "m.keras", dict(entry.custom) or None, safe_mode=False)
    except Exception as failed:
        raise NotApplicable(f"Keras can't save or load it: {failed}"[:300]) from failed
    expected = computed(model, x, entry.step(model))
    return compare(expected, predicted(entry, folder / "m.keras", x), limit_of(entry))


CELLS: dict[str, Callable[[Entry, pathlib.Path], str]] = {
    "distil": distil,
    "prune": prune,
    "freeze": freeze,
    "quantize": quantize,
    "keras": keras_file,
    "saved_model": exported(lambda m, path, x: tfkd.export.to_saved_model(m, path), "saved"),
    "onnx": exported(lambda m, path, x: tfkd.export.to_onnx(m, path), "m.onnx"),
    "onnx int8": exported_quantized(
        lambda q, path, x: tfkd.export.to_onnx(q, path, target="tensorrt"), "q.onnx", "tensorrt"
    ),
    "tflite": exported(lambda m, path, x: tfkd.export.to_tflite(m, path), "m.tflite"),
    "tflite int8": exported(
        lambda m, path, x: tfkd.export.to_tflite(m, path, mode="int8", data=data_of(x)),
        "i.tflite",
        True,
    ),
    "tflite trained int8": exported_quantized(
        lambda q, path, x: tfkd.export.to_tflite(q, path), "q.tflite", "tflite"
    ),
}
