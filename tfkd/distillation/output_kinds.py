"""Decides, once per Distiller, whether teacher and student return logits or probabilities.

It warns, too, where a loss takes independent labels for classes that exclude each other.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkd import checks
from tfkd.distillation.terms import Term
from tfkd.distillation.validation import PROBABILITY_LOSSES
from tfkd.losses.base import select
from tfkd.losses.decoupled import DecoupledDistillation
from tfkd.losses.expected_error import ExpectedErrorLoss
from tfkd.losses.heads import note
from tfkd.losses.logits import BINARY, CROSSENTROPY, KL, LogitsDistillation, is_a
from tfkd.losses.pearson import PearsonDistillation
from tfkd.losses.transformed_teacher import TransformedTeacherMatching
from tfkd.losses.wrapped import per_output
from tfkd.teachers import output_kinds
from tfkd.teachers.class_scores import is_of_classes, loss_of_labels, losses_of
from tfkd.teachers.precomputed import PROBABILITY
from tfkd.types import Data, Structure

_STORED = {"Softmax": "softmax", PROBABILITY: "softmax", "Sigmoid": "sigmoid", None: "logits"}
_BY_SOFTMAX = (DecoupledDistillation, PearsonDistillation, TransformedTeacherMatching)


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
    # A copy of the student, as in self-distillation, must not be read in another way.
    said = [output_kinds.compare(mine, one, from_logits) for one in theirs]
    for term in terms:
        # Terms that read the outputs in the same way share the result, and warn once.
        wants = tuple(wants_of(term.loss, mine))
        if wants not in each:
            many = len(theirs) > 1
            sides = [f"teacher {n}" if many else "teacher" for n in range(len(theirs))]
            args = zip(sides, theirs, [wants] * len(theirs), said, strict=True)
            each[wants] = (
                output_kinds.settle("student", mine, wants, from_logits),
                [output_kinds.settle(*arg) for arg in args],
            )
        term.student_kinds, term.teacher_kinds = each[wants]
        if precomputed is not None:
            term.teacher_kinds = _stored(precomputed.layout)
        _warn_of_labels(distiller, term, mine, theirs)
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


def _warn_of_labels(distiller: Any, term: Term, mine: Any, theirs: list[Any]) -> None:
    """Warns if a term compares units that are independent labels by a softmax over them.

    A warning and no error: a network that is trained one class against the rest looks alike.
    """
    shown = [_shown(mine)]
    if distiller._precomputed_teacher is not None:
        shown += term.teacher_kinds or []
    else:
        shown += [_shown(one) for one in theirs if one is not None]
    outputs = tf.nest.flatten(mine)
    losses = losses_of(distiller, distiller.student, len(outputs))
    found: dict[str, list[str]] = {}
    compared = _by_softmax(term.loss, mine)
    for number, by_softmax in enumerate(_by_softmax(term.loss, mine, len(shown) > 2)):
        kinds = [kinds[number] for kinds in shown if number < len(kinds)]
        why = _why_labels(kinds, losses[number])
        if by_softmax and why is not None and outputs[number].shape[-1:] != (1,):
            found.setdefault(why, []).append(str(number))
    fix = 'Pass loss="binary_crossentropy" to LogitsDistillation.'
    if not isinstance(term.loss, LogitsDistillation):
        name = type(term.loss).__name__
        fix = f'{name} is for classes: use LogitsDistillation(loss="binary_crossentropy").'
    elif tf.nest.is_nested(mine):
        fix = f"{fix[:-1]}, or a structure of losses with it in these places."
    blind = (
        "compares them by a softmax: what adds the same to all scores changes neither the loss "
        "nor `agreement`"
    )
    if not any(compared):
        blind = "averages its teachers by a softmax, which loses what adds the same to all scores"
    for why, numbers in found.items():
        where = f", output {' and '.join(numbers)}" if tf.nest.is_nested(mine) else ""
        checks.warn(
            f"student{where}: the units are independent labels ({why}), but {term.name} takes them "
            f"for classes of which one is true, and {blind}. {fix}"
        )


def _shown(evidence: Any) -> list[str | None]:
    """For each output "softmax" or "sigmoid" if it is one for certain, else None."""
    found: list[str | None] = []
    for one in tf.nest.flatten(evidence):
        kind = one.declared or one.proved
        if one.declared is None and kind != "sigmoid" and (one.seen == "one" or one.oddity):
            kind = "softmax"
        found.append(kind if kind in ("softmax", "sigmoid") else None)
    return found


def _why_labels(kinds: list[str | None], loss: Any) -> str | None:
    """Why the units of an output are independent labels; None: they are not, or may not be.

    Args:
        kinds: by `_shown` of the student and of each teacher.
        loss: on the labels.
    """
    if "softmax" in kinds:  # also trained by binary_crossentropy, on one-hot labels
        return None
    if kinds[0] == "sigmoid":
        return "it ends in sigmoids"
    name = loss_of_labels(loss)
    if name is not None:
        return f"the loss given to `compile` is {name}"
    is_taught = "sigmoid" in kinds and not is_of_classes(loss)
    return "its teacher ends in sigmoids" if is_taught else None


def _by_softmax(loss: Any, outputs: Structure, are_averaged: bool = False) -> list[bool]:
    """For each output, whether a loss compares its units by a softmax over them.

    Args:
        loss: a loss on class scores. One of the user's own may compare them in any way.
        outputs: the structure of the outputs.
        are_averaged: there are several teachers, which all losses but those of sigmoids
            average by a softmax.
    """
    wants = [want == "softmax" for want in wants_of(loss, outputs)]
    if isinstance(loss, ExpectedErrorLoss):  # compares with the labels alone, and checks them
        return [False] * len(wants)
    if are_averaged or isinstance(loss, _BY_SOFTMAX):
        return wants
    if not isinstance(loss, LogitsDistillation):
        return [False] * len(wants)
    kinds = tf.nest.flatten(per_output(loss.loss, outputs))
    return [is_a(kind, KL) or is_a(kind, CROSSENTROPY) for kind in kinds]


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
