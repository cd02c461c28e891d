"""The plan of pruning that a budget asks for: multiply-accumulates, bytes or milliseconds."""

from __future__ import annotations

import pathlib
import tempfile
import warnings
from typing import Any

import tf_keras as keras

from tfkd import known_faults, pruning, quantization, report
from tfkd.pruning.refusals import UnreachableError
from tfkd.recipes import exporting
from tfkd.recipes.budget import Budget
from tfkd.recipes.outcome import InfeasibleError
from tfkd.recipes.run_state import Run
from tfkd.recipes.stages import Prune

_NOTHING = 1e-9  # a target that no removed filter is needed for
_MOST = 0.999  # share of the parameters that is tried at most
_TRIES = 6  # exports that search for a size
_WIDTHS = (8, 4, 1)  # of which kept widths are multiples, by preference

_SETTINGS = (
    "(Such settings are fields of the stage 'prune': edit recipe.json, and start it by `tfkd run`.)"
)


def planned(run: Run, model: keras.Model, settings: Prune) -> pruning.Plan:
    """The plan that meets the recipe's budget, or the stage's `macs_reduction`.

    Raises:
        InfeasibleError: if the budget can't be met; it names the least.
        ValueError: if the model can't be pruned.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the plan removes nothing")  # which `sentence` says
        plan = _roundest(run, model, settings)
    width = known_faults.environment_width()
    if width > plan.round_to and _faulty(model, plan, width):
        run.voice.say(f"prune: widths are multiples of {width}, as oneDNN fails on narrower ones")
        try:
            plan = _plan(run, model, settings, width)
        except InfeasibleError as error:
            text = (
                f"{error} Widths are multiples of {width}, as TensorFlow's oneDNN fails on "
                "narrower ones on this processor: with the environment variable "
                f"TF_ENABLE_ONEDNN_OPTS=0 multiples of {plan.round_to} meet it."
            )
            raise InfeasibleError(error.gate, text, error.least) from error
    return plan


def _roundest(run: Run, model: keras.Model, settings: Prune) -> pruning.Plan:
    """The plan with the widths for which kernels are fastest, among those that can be reached."""
    by_time = str(run.recipe.budget).startswith("latency") and settings.macs_reduction is None
    choices = _WIDTHS if settings.round_to is None and not by_time else (settings.round_to or 1,)
    for round_to in choices:
        try:
            return _plan(run, model, settings, round_to)
        except InfeasibleError as error:
            last = error
    raise last


def _faulty(model: keras.Model, plan: pruning.Plan, width: int) -> bool:
    """Whether the cut network meets a fault that the whole one does not."""
    if known_faults.overflowing_layers(model, width):
        return False
    with warnings.catch_warnings():  # of the fault, which is told here
        warnings.simplefilter("ignore")
        small = pruning.shrink(model, pruning.select(model, plan))
    return bool(known_faults.overflowing_layers(small, width))


def input_shape(run: Run, model: keras.Model) -> tuple[int, ...] | None:
    """The sizes of the data, for which the costs of a model of open sizes are counted, or None."""
    shape = model.input_shape
    if isinstance(shape, tuple) and None in shape[1:]:
        return tuple(run.task.calibration(1).shape[1:])
    return None


def _plan(run: Run, model: keras.Model, settings: Prune, round_to: int) -> pruning.Plan:
    options: dict[str, Any] = {
        "residual": settings.residual,
        "criterion": settings.criterion,
        "round_to": round_to,
        "ignore": settings.ignore,
        "seed": run.recipe.seed,
    }
    if (shape := input_shape(run, model)) is not None:
        options["input_shape"] = shape
    if settings.macs_reduction is not None:
        return _reduced(model, None, options, macs_reduction=settings.macs_reduction)
    budget = Budget.parse(str(run.recipe.budget))
    if budget.kind == "macs":
        return _reduced(model, budget, options, macs_reduction=1 - budget.value)
    if budget.kind == "latency":
        return _latency(run, model, settings, budget, options)
    return _sized(run, model, budget, options)


def _reduced(model: keras.Model, budget: Any, options: dict[str, Any], **target: Any):
    try:
        return pruning.plan(model, **target, **options)
    except UnreachableError as error:
        least = getattr(error, "least_ms", None)
        gate = None if least is None else "latency_ms"
        said = str(error)
        if budget is not None and error.fix:  # which does not name an argument of Python
            said = f"{budget}: {error.fix} {_SETTINGS}"
        raise InfeasibleError(gate, said, least) from error


def _latency(
    run: Run, model: keras.Model, settings: Prune, budget: Budget, options: dict[str, Any]
):
    """The plan by a measured table of layer times, of the file's kind."""
    table = settings.latency_table or run.folder.file("latency_times.json")
    mode = "int8" if run.recipe.stage("quantize") else "float32"
    times = report.LayerTimes(table, mode=mode, command=settings.latency_command)
    run.voice.say(f"prune: measuring layers in LiteRT, {mode}; the times are kept in {table}")
    options = options | {"round_to": settings.round_to}  # None: what suits measured times
    with run.voice.progress(None, "Measuring layers") as bar:
        measure = _Counted(times, bar)
        return _reduced(model, budget, options, latency_ms=budget.value, measure=measure)


class _Counted:
    """A table of times that says how much it has measured."""

    def __init__(self, times: report.LayerTimes, bar: Any):
        self._times, self._bar, self._done = times, bar, 0

    def __call__(self, model: keras.Model) -> float:
        return self._counted(self._times(model))

    def beside(self, model: keras.Model, other: keras.Model) -> float:
        return self._counted(self._times.beside(model, other))

    def _counted(self, found: float) -> float:
        self._done += 1
        self._bar.update(self._done)
        return found


def _sized(run: Run, model: keras.Model, budget: Budget, options: dict[str, Any]) -> pruning.Plan:
    """The least pruning whose exported file is small enough, by exports of cut networks."""
    low, high, best, least = 0.0, _MOST, None, None
    whole = _bytes(run, model)
    if whole <= budget.value:
        return pruning.plan(model, params_reduction=_NOTHING, **options)
    share = max(1 - budget.value / whole, 0.01)
    for _ in range(_TRIES):
        try:
            plan = pruning.plan(model, params_reduction=min(share, _MOST), **options)
        except UnreachableError:
            high = share
            share = (low + high) / 2
            continue
        size = _bytes(run, pruning.shrink(model, pruning.select(model, plan)))
        least = size if least is None else min(least, size)
        if size <= budget.value:
            best, high = plan, share
        else:
            low = share
        if best is not None and size > 0.95 * budget.value and size <= budget.value:
            break
        share = (low + high) / 2
    if best is None:
        text = f"{budget}: the smallest file that was reached has {least or _bytes(run, model):,} B"
        raise InfeasibleError("size", text, least)
    return best


def _bytes(run: Run, model: keras.Model) -> int:
    """Bytes of the file of a network, whatever its weights are."""
    task, target = run.task, run.recipe.target
    if run.recipe.stage("quantize"):
        settings = run.recipe.stage("quantize")
        model = quantization.quantize(
            model, target=target, fallback=settings.fallback, skip=settings.skip
        )
        quantization.calibrate(model, task.calibration(16))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / ("m.onnx" if target == "tensorrt" else "m.tflite")
        if target == "tensorrt":
            task.to_onnx(model, path, 0)
        else:
            task.to_tflite(model, path, exporting.input_of(run), 0)
        return path.stat().st_size


def sentence(plan: pruning.Plan) -> str:
    """The plan in one line."""
    removed = sum(plan.remove.values())
    if not removed:
        return "prune: the budget is met as it is; no filter goes"
    unknown = list(plan.graph.unknown)
    shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
    left_out = f"; MACs are not known of {shown}, and left out" if unknown else ""
    return (
        f"prune: {removed} filters go, {100 * plan.macs_reduction:.1f} % of the MACs and "
        f"{100 * plan.params_reduction:.1f} % of the parameters{left_out}"
    )
