"""Structural steps between stages: pruning, layer removal, quantization, filter decay."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, pruning, quantization
from tfkd.pruning.masking import random_inputs
from tfkd.types import Data


class Changed(NamedTuple):
    """A student after a structural step, and an optimizer with the state of remaining weights."""

    student: keras.Model
    optimizer: Any = None


class Structural:
    """A structural step: `step(student)` → a new student that shares no weights with the old."""

    def __call__(self, student: keras.Model) -> keras.Model:
        """Returns the changed student."""
        return self.change(student, None).student

    def change(self, student: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> Changed:
        """Changes the student, and transfers the optimizer's state if possible."""
        raise NotImplementedError(f"{type(self).__name__} does not implement `change`")


class _WithOptions(Structural):
    """A step that passes its options to a function of tfkd."""

    def __init__(self, **options: Any):
        self.options = options

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={checks.describe(v)}" for name, v in self.options.items())
        return f"{type(self).__name__}({shown})"


class Prune(_WithOptions):
    """One-shot filter pruning: removes the filters with the lowest scores.

    Args:
        **options: arguments of `tfkd.pruning.plan`, such as `macs_reduction=0.5`.

    Example:
        >>> import tfkd
        >>> small = tfkd.progressive.Prune(macs_reduction=0.5)(tfkd.models.resnet(8))
        >>> small.count_params() < tfkd.models.resnet(8).count_params()
        True
    """

    def change(self, student: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> Changed:
        """Plans, selects and shrinks."""
        selection = pruning.select(student, pruning.plan(student, **self.options))
        return cut_out(student, selection, optimizer)


class CutLayers(_WithOptions):
    """Depth pruning: removes whole residual blocks or transformer layers.

    Args:
        choose: arguments of `tfkd.pruning.choose_layers`, such as `{"keep": 0.5, "by":
            "damage", "data": x}`: the blocks are chosen when the stage begins.
        **options: without `choose`, arguments of `tfkd.pruning.cut_layers`: `keep=` or
            `drop=`.

    Raises:
        TypeError: if `choose` is not a dict.
        ValueError: if it is not the only option, lacks `keep`, or has an unknown option.

    Example:
        >>> import tfkd
        >>> cut = tfkd.progressive.CutLayers(drop="stage*_block2")
        >>> len(tfkd.models.resnet(20).layers) - len(cut(tfkd.models.resnet(20)).layers)
        21
        >>> even = tfkd.progressive.CutLayers(choose={"keep": 2})
        >>> [b.name for b in tfkd.pruning.find_blocks(even(tfkd.models.resnet(14))) if b.removable]
        ['stage1_block1', 'stage3_block2']
    """

    def __init__(self, choose: Mapping[str, Any] | None = None, **options: Any):
        super().__init__(**options, **({} if choose is None else {"choose": choose}))
        if choose is None:
            return
        checks.instance("choose", choose, Mapping, "a dict of options of choose_layers")
        if options:
            fix = "`choose` alone decides which blocks are kept."
            raise checks.value_error("choose", "no `keep` or `drop` beside it", options, fix)
        known = list(inspect.signature(pruning.choose_layers).parameters)[1:]
        for name in choose:
            checks.one_of("choose", name, known)
        if "keep" not in choose:
            raise checks.value_error("choose", "the number of blocks as 'keep'", list(choose))

    def change(self, student: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> Changed:
        """Removes the blocks; the others keep their weights."""
        if "choose" not in self.options:
            return Changed(pruning.cut_layers(student, **self.options))
        choice = pruning.choose_layers(student, **self.options["choose"])
        return Changed(pruning.cut_layers(student, drop=choice))


class Quantize(_WithOptions):
    """Quantization-aware training (fake quantization to 8 bits) from this stage on.

    Args:
        data: calibration examples, as for `tfkd.quantization.calibrate`.
        method: calibration method: "minmax", "percentile" or "mse".
        **options: arguments of `tfkd.quantization.quantize`, such as `target="both"`;
            with `freeze_batch_norm=False` batch normalizations stay trainable.

    Example:
        >>> import numpy as np, tfkd
        >>> images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
        >>> step = tfkd.progressive.Quantize(images, target="tflite")
        >>> step(tfkd.models.resnet(8)).calibrated
        True
    """

    def __init__(self, data: Data, method: str = "minmax", **options: Any):
        super().__init__(**options)
        self.data, self.method = data, method

    def change(self, student: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> Changed:
        """Quantizes and calibrates."""
        quantized = quantization.quantize(student, **self.options)
        quantization.calibrate(quantized, self.data, method=self.method)
        return Changed(quantized)


@dataclasses.dataclass(frozen=True)
class Decay:
    """Gradual filter pruning: filters decay to zero during a stage and are removed at its end.

    See `tfkd.callbacks.FilterDecay`.

    Args:
        options: arguments of `tfkd.pruning.plan`, such as `{"macs_reduction": 0.5}`.
        end: fraction of the stage's steps after which the filters are zero, in (0, 1]; the
            remaining steps train the others before the zero filters are removed.
        every: steps between decays; None: once per epoch.
        anneal: how the rate falls, see `tfkd.pruning.AnnealedFilterDecay`.

    Raises:
        TypeError, ValueError: for invalid arguments.

    Example:
        >>> import tfkd
        >>> tfkd.progressive.Decay({"macs_reduction": 0.5}, end=0.5).end
        0.5
    """

    options: dict[str, Any]
    end: float = 1.0
    every: int | None = None
    anneal: str = "linear"

    def __post_init__(self):
        checks.instance("options", self.options, dict, "a dict of options of tfkd.pruning.plan")
        checks.fraction("end", self.end)
        if self.end == 0:
            raise checks.value_error("end", "a part of the stage above 0", self.end)
        checks.optional(checks.positive_int, "every", self.every)

    def schedule(
        self, plan: pruning.Plan, begin: int, steps: int, epoch: int
    ) -> pruning.AnnealedFilterDecay:
        """The schedule of the decay rate over the optimizer's steps.

        Args:
            plan: the pruning plan, with the filters to remove.
            begin: the step at which the stage begins.
            steps: steps of the stage.
            epoch: steps per epoch.
        """
        every = self.every or epoch
        length = max(int(self.end * steps) // every, 1) * every
        return pruning.AnnealedFilterDecay(
            target_sparsity=sum(plan.remove.values()) / max(plan.graph.units, 1),
            begin_step=begin,
            end_step=begin + length,
            frequency=every,
            anneal=self.anneal,
        )


def cut_out(
    student: keras.Model, selection: pruning.Selection, optimizer: keras.optimizers.Optimizer | None
) -> Changed:
    """Removes the selected filters from the student and, if possible, the optimizer's state."""
    texts = any(tensor.dtype == tf.string for tensor in student.inputs)
    small = pruning.shrink(student, selection, random_inputs(student) if texts else True)
    if isinstance(optimizer, keras.optimizers.Optimizer):
        optimizer = pruning.shrink_optimizer(optimizer, student, small, selection)
    else:
        optimizer = None
    return Changed(small, optimizer)


def apply(
    step: Callable[[keras.Model], keras.Model],
    student: keras.Model,
    optimizer: keras.optimizers.Optimizer | None = None,
) -> Changed:
    """Applies a structural step, or a user's function from a model to a model.

    Raises:
        TypeError: if a function does not return a model.
    """
    if isinstance(step, Structural):
        return step.change(student, optimizer)
    changed = step(student)
    if not isinstance(changed, keras.Model):
        expected = "functions that return a tf_keras model"
        raise checks.type_error("structure", expected, changed)
    return Changed(changed)
