"""SSD's MultiBox loss on the labels, for `compile`: confidence plus localization."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.losses.base import Shared, register
from tfkd.losses.detection.selection import Matching, MultiBoxSelection
from tfkd.losses.detection.terms import MultiBoxConfidence, MultiBoxLocalization
from tfkd.losses.joint import JointLoss, Part
from tfkd.losses.weighting import weighted_sums
from tfkd.types import Structure


@register
class MultiBoxLoss(JointLoss):
    """SSD's loss: cross-entropy with hard-negative mining plus smooth L1, divided by N.

        (1/N) · (α · Σ_selected CE + β · Σ_positive smoothL1)

    N is the number of priors with an object in the (global) batch, at least 1. Pass it to
    `compile` of any tf_keras model with a dict of outputs, to train without a teacher, or
    of a `tfkd.Distiller`, where it is the student's loss on the labels. Both parts are
    logged.

    Args:
        selection: `MultiBoxSelection`, or a `tfkd.detection.Matcher`, which is used with
            three hard negatives for each positive.
        confidence_weight: α, at least 0.
        localization_weight: β, at least 0.
        name: name of the loss.

    Targets are the objects: {"boxes": (B, M, 4), "classes": (B, M)}, as
    `tfkd.detection.Matcher` accepts them. Sample weights are weights of images.

    Raises:
        TypeError: if `selection` is neither.
        ValueError: for a negative weight, or both 0.

    Reference:
        Liu et al. 2016, "SSD: Single shot multibox detector", https://arxiv.org/abs/1512.02325

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> priors = np.array([[0.25, 0.5, 0.5, 1], [0.75, 0.5, 0.5, 1]], "float32")
        >>> image = keras.Input((8, 8, 3))
        >>> x = keras.layers.Conv2D(7, (8, 4), 4)(image)
        >>> x = keras.layers.Reshape((2, 7))(x)
        >>> net = keras.Model(image, {"boxes": x[..., :4], "classes": x[..., 4:]})
        >>> net.compile("adam", loss=tfkd.losses.MultiBoxLoss(tfkd.detection.Matcher(priors)))
        >>> y = {"boxes": np.array([[[0, 0, 0.5, 1]]], "float32"), "classes": np.array([[1]])}
        >>> history = net.fit(np.ones((1, 8, 8, 3)), y, verbose=0)
        >>> sorted(history.history)
        ['loss', 'multibox_confidence', 'multibox_localization']
    """

    part_names = ("multibox_confidence", "multibox_localization")

    def __init__(
        self,
        selection: MultiBoxSelection | Matching,
        confidence_weight: float = 1.0,
        localization_weight: float = 1.0,
        name: str = "multibox_loss",
    ):
        super().__init__(name)
        self.selection = as_selection(selection)
        self.confidence_weight = float(checks.non_negative("confidence_weight", confidence_weight))
        weight = checks.non_negative("localization_weight", localization_weight)
        self.localization_weight = float(weight)
        if confidence_weight == localization_weight == 0:
            expected = "confidence_weight or localization_weight above 0"
            raise checks.value_error("localization_weight", expected, 0)

    def parts(
        self, y: Structure, y_pred: Structure, sample_weight: Structure | None, shared: Shared
    ) -> list[Part]:
        """(weight, sum, N) of the confidence loss and of the localization loss."""
        terms = [MultiBoxConfidence(self.selection), MultiBoxLocalization(self.selection)]
        weights = [self.confidence_weight, self.localization_weight]
        result = []
        for term, weight in zip(terms, weights, strict=True):
            elements = term.elements(None, y_pred, y=y, shared=shared)
            result += [(weight, *sums) for sums in weighted_sums(elements, sample_weight)]
        return result

    def get_config(self) -> dict[str, Any]:
        """All arguments, as JSON."""
        return {
            "selection": keras.saving.serialize_keras_object(self.selection),
            "confidence_weight": self.confidence_weight,
            "localization_weight": self.localization_weight,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MultiBoxLoss:
        """Makes the loss that `get_config` described."""
        selection = keras.saving.deserialize_keras_object(config["selection"])
        return cls(**{**config, "selection": selection})


def as_selection(selection: MultiBoxSelection | Matching) -> MultiBoxSelection:
    """Accepts a `MultiBoxSelection`, or makes one with default mining from a matcher."""
    if isinstance(selection, MultiBoxSelection):
        return selection
    if not callable(selection) or isinstance(selection, type):
        expected = "a MultiBoxSelection or a tfkd.detection.Matcher"
        raise checks.type_error("selection", expected, selection)
    return MultiBoxSelection(selection)
