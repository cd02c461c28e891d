"""The cheapest teacher that says the same: cached outputs, or a folded bfloat16 copy.

Where the views of an example repeat, its outputs are computed once and stored. Where each
epoch draws new ones, a frozen copy without batch normalizations runs, in bfloat16 if the
processor multiplies it. A copy is compared with the teacher on one batch before it is used.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.networks.frozen_copy import frozen_copy
from tfkd.recipes.task import Task
from tfkd.teacher_cache import TeacherCache

# What a bfloat16 copy may differ: mean error as a part of the range, and argmax.
MAX_ERROR, MIN_AGREEMENT = 0.02, 0.95
_MATRIX_UNITS = ("avx512_bf16", "amx_bf16")
_KERNELS = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10")


@functools.cache
def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 (AVX512_BF16 or AMX)."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    if limit.upper() not in ("ALL", "DEFAULT") and not limit.upper().startswith(_KERNELS):
        return False  # oneDNN then has no kernels for it, and TensorFlow fails
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return any(unit in flags.split() for unit in _MATRIX_UNITS)


def choose(
    task: Task, teacher: Any, views: int, cache: pathlib.Path
) -> tuple[Any, Callable[[int], tf.data.Dataset], str]:
    """A teacher for a Distiller.

    Args:
        task: the data.
        teacher: the exact teacher.
        views: versions of each example; 0: a new one in each epoch.
        cache: a folder for its outputs.

    Returns:
        The teacher, first step → batches for it, and what was taken and why.
    """
    repeats = views > 0 or (task.kind != "images" or not task.recipe.augment)
    if repeats and task.kind != "boxes":
        return _cached(task, teacher, max(views, 1), cache)
    batches = functools.partial(task.batches, views)
    if not isinstance(teacher, keras.Model):
        return teacher, batches, "the teacher as it is: it is no Keras model that can be copied"
    found, how = copied(teacher, task.calibration(task.batch))
    return found, batches, how


def _cached(
    task: Any, teacher: Any, views: int, folder: pathlib.Path
) -> tuple[Any, Callable[[int], tf.data.Dataset], str]:
    part, augment = task.found.train, task.augment(views)
    cache = TeacherCache.build(
        folder,
        teacher,
        part.x,
        views=views,
        augment=augment,
        preprocess=task.scaling,
        seed=task.recipe.seed,
        overwrite=True,  # one that another version of tfkd began, whose functions differ
        progress=False,
    )

    def batches(first_step: int) -> tf.data.Dataset:
        return cache.batches(
            part.x,
            part.y,
            task.batch,
            seed=task.recipe.seed,
            augment=augment,
            preprocess=task.scaling,
            start_step=first_step,
        )

    times = "its only view" if views == 1 else f"each of {views} views"
    return cache, batches, f"cached outputs: computed once for {times} of an example"


def copied(teacher: keras.Model, x: Any) -> tuple[keras.Model, str]:
    """A frozen copy that answers like the teacher on a batch, and which one it is."""
    exact = teacher.predict_on_batch(x)
    tried = [("bfloat16", "in bfloat16, without batch normalizations")] if has_bfloat16() else []
    for dtype, what in [*tried, (None, "in float32, without batch normalizations")]:
        try:
            copy = frozen_copy(teacher, dtype=dtype, fold_batch_norm=True)
            error, agreement = difference(exact, copy.predict_on_batch(x))
        except (ValueError, tf.errors.OpError):  # it can't be rebuilt, or has no kernel
            continue
        if error <= MAX_ERROR and agreement >= MIN_AGREEMENT:
            shown = f"mean error {100 * error:.2g} % of the range, agreement {agreement:.3f}"
            return copy, f"a frozen copy {what}; on one batch: {shown}"
    return frozen_copy(teacher), "an exact frozen copy"


def difference(exact: Any, other: Any) -> tuple[float, float]:
    """(largest mean error of an output as a part of its range, smallest argmax agreement)."""
    errors, agreements = [0.0], [1.0]
    for a, b in zip(tf.nest.flatten(exact), tf.nest.flatten(other), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        errors.append(float(np.mean(np.abs(a - b)) / max(np.ptp(a), 1e-12)))
        if a.shape[-1] > 1:
            agreements.append(float(np.mean(a.argmax(-1) == b.argmax(-1))))
    return max(errors), min(agreements)
