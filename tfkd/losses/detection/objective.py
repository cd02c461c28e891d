"""The distillation objective of an SSD student, with weight presets from the literature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfkd import checks, schedules
from tfkd.losses.base import DistillationLoss
from tfkd.losses.detection.multibox_loss import as_selection
from tfkd.losses.detection.selection import Matching, MultiBoxSelection
from tfkd.losses.detection.terms import MultiBoxConfidence, MultiBoxLocalization, MultiBoxSoftTarget
from tfkd.losses.features import FeatureDistillation
from tfkd.losses.regression import BoundedRegression
from tfkd.schedules import Value

# (weights of the terms, temperature, weight of the background in the soft targets);
# "chen" is Chen et al. 2017, sections 3.2 and 3.3.
PRESETS = {
    "default": ({"soft": 0.5, "confidence": 1.0, "bounded": 0.25, "localization": 1.0}, 2.0, 1.0),
    "source": ({"soft": 0.3, "confidence": 0.7, "bounded": 0.5, "localization": 1.0}, 2.0, 1.5),
    "chen": ({"soft": 0.5, "confidence": 0.5, "bounded": 0.5, "localization": 1.0}, 1.0, 1.5),
}


def multibox_objective(
    selection: MultiBoxSelection | Matching,
    preset: str = "default",
    weights: Mapping[str, Value | None] | None = None,
    temperature: Value | None = None,
    background_weight: float | None = None,
    margin: Value = 0.0,
    hint: tuple[str, str] | None = None,
    hint_weight: Value = 0.5,
) -> dict[str, Any]:
    """Returns the four terms of a detector's student as arguments for a Distiller.

        (w₁ · soft + w₂ · confidence) + (w₃ · bounded + w₄ · localization) [+ w₅ · hint]

    soft: `MultiBoxSoftTarget`; confidence: `MultiBoxConfidence`; bounded:
    `BoundedRegression`; localization: `MultiBoxLocalization`. All use the same priors,
    which are selected once a step. Each is logged under its name.

    Args:
        selection: `MultiBoxSelection`, or a `tfkd.detection.Matcher`.
        preset: default weights, temperature and background weight:
            "source": 0.3, 0.7, 0.5, 1; T = 2; background 1.5.
            "chen": 0.5, 0.5, 0.5, 1; T = 1; background 1.5 (Chen et al. add a hint).
            "default": 0.5, 1, 0.25, 1; T = 2; background 1 (`benchmarks/RESULTS.md`
            compares the three).
        weights: changes to the preset: a number of at least 0 or a schedule for "soft",
            "confidence", "bounded" or "localization". None omits a term.
        temperature: T > 0 of the soft targets, or a schedule.
        background_weight: weight of the background in the soft targets.
        margin: m of the bounded regression, in squared encoded offsets.
        hint: (teacher's layer, student's layer) whose features are compared through a
            trained 1 × 1 projection, also where both have equal channels.
        hint_weight: w₅.

    Returns:
        Keyword arguments of `tfkd.Distiller`: `distillation_losses`,
        `distillation_loss_weights` and `student_loss_weight` (0: the labels are in the
        terms).

    Raises:
        TypeError: for a weight that is neither number nor schedule.
        ValueError: for an unknown preset or term, a negative weight, or T ≤ 0.

    Reference:
        Chen et al. 2017, "Learning efficient object detection models with knowledge
        distillation", NeurIPS 2017

    Example:
        >>> import numpy as np, tfkd
        >>> priors = np.array([[0.25, 0.5, 0.5, 1], [0.75, 0.5, 0.5, 1]], "float32")
        >>> objective = tfkd.losses.multibox_objective(
        ...     tfkd.detection.Matcher(priors), "source", weights={"localization": 2.0})
        >>> [loss.name for loss in objective["distillation_losses"]][:3]
        ['multibox_soft_target', 'multibox_confidence', 'bounded_regression']
        >>> objective["distillation_loss_weights"]
        [0.3, 0.7, 0.5, 2.0]
    """
    checks.one_of("preset", preset, PRESETS)
    defaults, default_temperature, default_background = PRESETS[preset]
    selection = as_selection(selection)
    losses: dict[str, DistillationLoss] = {
        "soft": MultiBoxSoftTarget(
            default_temperature if temperature is None else temperature,
            default_background if background_weight is None else background_weight,
            selection=selection,
        ),
        "confidence": MultiBoxConfidence(selection),
        "bounded": BoundedRegression(margin, selection=selection),
        "localization": MultiBoxLocalization(selection),
    }
    return objective(losses, defaults, weights, hint_between(hint), hint_weight)


def objective(
    losses: dict[str, DistillationLoss],
    defaults: Mapping[str, Value | None],
    weights: Mapping[str, Value | None] | None,
    hint: DistillationLoss | None,
    hint_weight: Value,
) -> dict[str, Any]:
    """Returns the terms that have a weight, as arguments for a Distiller.

    Args:
        losses: the terms, by their names in `weights`.
        defaults: their default weights.
        weights: the user's changes to them: a weight, or None to omit a term.
        hint: a further term, or None.
        hint_weight: its weight.
    """
    chosen = {**defaults, **_check_weights(weights, losses)}
    pairs = [(losses[name], chosen[name]) for name in losses if chosen[name] is not None]
    if hint is not None:
        pairs.append((hint, schedules.get("hint_weight", hint_weight, checks.non_negative)))
    if not pairs:
        raise checks.value_error("weights", "at least one term that is not None", weights)
    return {
        "distillation_losses": [loss for loss, _ in pairs],
        "distillation_loss_weights": [weight for _, weight in pairs],
        "student_loss_weight": 0.0,
    }


def hint_between(layers: Sequence[str] | None) -> FeatureDistillation | None:
    """A hint between (teacher's layer, student's layer), or None for None."""
    if layers is None:
        return None
    if not isinstance(layers, (list, tuple)) or len(layers) != 2:
        raise checks.value_error("hint", "(teacher's layer, student's layer)", layers)
    names = {"teacher_layer_name": layers[0], "student_layer_name": layers[1]}
    # Chen et al. 2017 found the adaptation layer to help at equal width too.
    return FeatureDistillation(**names, projector="always", name="hint")


def _check_weights(
    weights: Mapping[str, Value | None] | None, terms: Iterable[str]
) -> dict[str, float | schedules.Schedule | None]:
    if weights is None:
        return {}
    if not isinstance(weights, dict):
        raise checks.type_error("weights", "a dict of terms and their weights", weights)
    for name in weights:
        checks.one_of("weights", name, terms)
    return {
        name: None if weight is None else schedules.get("weights", weight, checks.non_negative)
        for name, weight in weights.items()
    }
