"""Decides, once per Distiller, whether teacher and student return logits or probabilities."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkd import checks
from tfkd.distillation.terms import Term
from tfkd.distillation.validation import PROBABILITY_LOSSES
from tfkd.losses.base import select
from tfkd.losses.expected_error import ExpectedErrorLoss
from tfkd.losses.heads import note
from tfkd.losses.logits import BINARY, LogitsDistillation, is_a
from tfkd.losses.wrapped import per_output
from tfkd.teachers import output_kinds
from tfkd.teachers.class_scores import losses_of
from tfkd.teachers.precomputed import PROBABILITY
from tfkd.types import Data, Structure

_STORED = {"Softmax": "softmax", PROBABILITY: "softmax", "Sigmoid": "sigmoid", None: "logits"}


@tf.autograph.experimental.do_not_convert
def decide(distiller: Any, x: Data, in_step: bool = False) -> None:
    """Determines for each term the kinds of the outputs that it compares, once.

    Args:
        distiller: a Distiller. If its models are not built yet, the decision is left to the
            first step.
        x: the data of `fit`, or a batch, whose first examples are used; or a data set or
            symbolic tensors, for which random inputs of their shape are used.
        in_step: x is the batch of a step, so the decision cannot be postponed.
    """
    terms = [term for term in distiller._terms if term.on_scores]
    on_labels = _expected_errors(distiller)
    if distiller._decided or not (terms or any(on_labels)):
        return
    student, teachers = distiller.student, distiller._teacher_feature_extractor
    precomputed = distiller._precomputed_teacher
    models = [student, *([] if precomputed else [taps.model for taps in teachers.taps])]
    if not all(getattr(model, "built", True) for model in models):
        return
    with tf.init_scope():
        sample = output_kinds.examples(x, student)
    if sample is None and not in_step:
        return
    distiller._set_untracked(_decided=True)
    weight = distiller.student_loss_weight
    if checks.is_number(weight) and weight == 1:
        terms = []
    with tf.init_scope():
        mine = output_kinds.look(student, lambda x: student(x, training=False), sample)
        theirs = []
        if terms and not precomputed:
            runs = [teachers.runner(number) for number in range(len(teachers.taps))]
            theirs = [output_kinds.look(*one, sample) for one in zip(models[1:], runs, strict=True)]
    _settle(distiller, terms, mine, theirs)


def _settle(distiller: Any, terms: list[Term], mine: Any, theirs: list[Any]) -> None:
    if mine is None:
        return
    precomputed, from_logits = distiller._precomputed_teacher, _expects_logits(distiller, mine)
    each = {}
    for term in terms:
        # Terms that read the outputs in the same way share the result, and warn once.
        wants = tuple(wants_of(term.loss, mine))
        if wants not in each:
            many = len(theirs) > 1
            sides = [f"teacher {n}" if many else "teacher" for n in range(len(theirs))]
            each[wants] = (
                output_kinds.settle("student", mine, wants, from_logits),
                [output_kinds.settle(s, one, wants) for s, one in zip(sides, theirs, strict=True)],
            )
        term.student_kinds, term.teacher_kinds = each[wants]
        if precomputed is not None:
            term.teacher_kinds = _stored(precomputed.layout)
    sizes = output_kinds.by_size(mine)
    asked = _expected_errors(distiller, len(sizes))
    wants = tuple(size if there else None for size, there in zip(sizes, asked, strict=True))
    if any(wants):
        known = next((kinds for key, (kinds, _) in each.items() if _covers(key, wants)), None)
        kinds = known or output_kinds.settle("student", mine, wants, from_logits)
        distiller._set_untracked(_label_kinds=kinds)


def _covers(key: tuple[Any, ...], wants: tuple[Any, ...]) -> bool:
    return all(b is None or a == b for a, b in zip(key, wants, strict=True))


def wants_of(loss: Any, outputs: Structure) -> list[str | None]:
    """How a loss on class scores reads each output: "softmax", "sigmoid", or None if unused."""
    flat = tf.nest.flatten(outputs)
    if isinstance(loss, LogitsDistillation):
        # One number that "mse" compares may lie in [0, 1] and be no probability.
        kinds = tf.nest.flatten(per_output(loss.loss, outputs))
        return [
            None if kind is None else "sigmoid" if is_a(kind, BINARY) else "softmax"
            for kind in kinds
        ]
    chosen = outputs if len(flat) == 1 else None
    if hasattr(loss, "output"):
        chosen = select(outputs, loss.output, loss.name)
    sizes = output_kinds.by_size(flat)
    return [s if chosen is None or chosen is o else None for s, o in zip(sizes, flat, strict=True)]


def _stored(layout: Any) -> list[list[str | None]]:
    """Kinds of the stored final outputs of each precomputed teacher."""
    return [
        [_STORED[layout.finals[leaf].squash] for leaf in tf.nest.flatten(part)]
        for part in layout.structure
    ]


def _expects_logits(distiller: Any, outputs: Any) -> list[bool | None]:
    """For each output, whether the loss given to `compile` expects logits; None: unknown."""
    count = len(tf.nest.flatten(outputs))
    return [_takes_logits(loss) for loss in losses_of(distiller, distiller.student, count)]


def _takes_logits(loss: Any) -> bool | None:
    said = getattr(loss, "_fn_kwargs", {}).get("from_logits")
    if said is None:
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
        return False if name in PROBABILITY_LOSSES else None
    return bool(said)


def _expected_errors(distiller: Any, count: int = 0) -> list[bool]:
    flat = tf.nest.flatten(getattr(distiller, "loss", None))
    losses = losses_of(distiller, distiller.student, count) if count else flat
    return [isinstance(loss, ExpectedErrorLoss) for loss in losses]


def mark(distiller: Any, y_pred: Structure) -> None:
    """Marks the student's outputs with their kinds, for losses on the labels that need them."""
    if distiller._label_kinds is not None:
        for tensor, kind in zip(tf.nest.flatten(y_pred), distiller._label_kinds, strict=True):
            note(tensor, kind)
