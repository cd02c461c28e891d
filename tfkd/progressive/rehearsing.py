"""Dry run: applies all stages to a copy of the student before training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tf_keras as keras

from tfkd.networks import configs, layer_state
from tfkd.networks.call_graph import is_network
from tfkd.progressive import freezing, structure


def rehearse(owner: Any, callbacks: Any = None) -> None:
    """Applies the structural steps and frozen layers of the remaining stages to a copy.

    Args:
        owner: the ProgressiveDistiller.
        callbacks: callbacks of `fit`, whose checkpoints of each stage must be loadable.

    Raises:
        TypeError, ValueError, RuntimeError: the error of a stage, with its name.
    """
    stages = list(enumerate(owner.stages))[owner.stage :]
    if not any(stage.structure or stage.decay or stage.freeze for _, stage in stages):
        return
    configs.check_configs("student", owner.student)
    student = _copy(owner.student)
    for number, stage in stages:
        with _named(stage.title(number)):
            before = student
            for step in stage.structure:
                student = structure.apply(step, student).student
            freezing.freeze(student, stage.freeze, owner.trained)
            freezing.freeze(student, (), owner.trained)
            if stage.decay is not None:
                student = structure.Prune(**stage.decay.options)(student)
            if student is not before:
                # A Distiller checks the layers of losses, output shapes and inputs.
                owner.around(student).check_checkpoints(callbacks)


def _copy(student: keras.Model) -> keras.Model:
    def clone(layer: Any) -> Any:
        return type(layer).from_config(configs.complete(layer.get_config(), layer))

    # Keras copies subclassed models by their config, and then accepts no clone_function.
    learned = configs.has_adaptable_layers(student) and is_network(student)
    copy = keras.models.clone_model(student, clone_function=clone if learned else None)
    layer_state.copy(student, copy)
    return copy


@contextlib.contextmanager
def _named(title: str) -> Iterator[None]:
    """Prefixes errors with the name of the stage."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise type(error)(f"{title}: {error}") from error
