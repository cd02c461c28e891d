"""Opens what a recipe names: the data as a task, and the model, made to fit each other."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import tf_keras as keras

from tfkd import checks, data
from tfkd.recipes import consistency, token_models
from tfkd.recipes.classifying import Classifying
from tfkd.recipes.data import Data, Part, open_data
from tfkd.recipes.detecting import Detecting, anchors_of
from tfkd.recipes.fields import RecipeError
from tfkd.recipes.models import open_model
from tfkd.recipes.preprocessing import scaling_for
from tfkd.recipes.recipe import Recipe
from tfkd.recipes.scaling import AUTO, for_new_network, named
from tfkd.recipes.task import Task

DETECTOR_SIZE = 160  # pixels of a detector's side, unless the recipe or the model says it


def opened(recipe: Recipe) -> tuple[Task, Any]:
    """The task, and the model that the recipe names (None if it trains one).

    Raises:
        FileNotFoundError: if there is no such file.
        RecipeError: if a stage's `loss` is not for these data.
        ValueError: if data or model can't be used, or do not fit each other.
    """
    model = _model(recipe) if recipe.model and os.path.exists(recipe.model) else None
    # Only boxes need a size: a folder of images has its own.
    size = _side(model) or recipe.size or (DETECTOR_SIZE if recipe.task == "boxes" else None)
    found = open_data(
        recipe.data,
        size=size,
        val_fraction=recipe.val_fraction,
        test_fraction=recipe.test_fraction,
        seed=recipe.data_seed,
        on_error=recipe.on_error,
        columns=recipe.columns or None,
    )
    if recipe.task not in ("auto", found.kind):
        fix = 'Leave `task` at "auto", or give other data.'
        raise checks.value_error("data", recipe.task, f"{recipe.data}, {found.kind}", fix)
    if mistakes := list(consistency.losses(recipe.stages, found.kind, found.num_classes)):
        raise RecipeError(mistakes)
    if recipe.vocabulary is not None and found.kind != "texts":
        fix = f"{recipe.data} holds {found.kind}: leave it out."
        raise checks.value_error("vocabulary", "none without texts", recipe.vocabulary, fix)
    if recipe.model and model is None:
        model = _model(recipe, found)
    if found.kind == "boxes":
        anchors = None if model is None else anchors_of(str(recipe.model))
        return Detecting(found, recipe, anchors), model
    _check_classes(found, recipe, model)
    if found.kind == "texts":
        return _texts(found, recipe, model)
    return _classifier(found, recipe, model), model


def _model(recipe: Recipe, found: Data | None = None) -> Any:
    role = "teacher" if recipe.stage("distil") else "model"
    sizes: dict[str, Any] = {}
    if found is not None and found.kind != "texts":
        sizes = {"num_classes": found.num_classes, "input_shape": found.example_shape}
    elif found is not None:
        sizes = {"num_classes": found.num_classes}
    return open_model(str(recipe.model), role=role, **sizes)


def _check_classes(found: Data, recipe: Recipe, model: Any) -> None:
    """Refuses what is no classifier of one input and one output that fits the classes."""
    ports = [len(getattr(model, side, None) or [None]) for side in ("inputs", "outputs")]
    if ports != [1, 1]:
        fix = None
        if ports[0] == 1:
            fix = "Save the part that classifies: keras.Model(model.input, model.outputs[0])."
        received = f"{recipe.model} with inputs: {ports[0]}, outputs: {ports[1]}"
        raise checks.value_error("model", "a classifier with one input and output", received, fix)
    check_scores(str(recipe.model), getattr(model, "output_shape", None), found.num_classes)


def check_scores(name: str, shape: Any, classes: int) -> None:
    """Refuses a classifier with fewer scores than the data have classes, and warns of more.

    Args:
        name: of the model, for messages.
        shape: of its output; other shapes than (batch, scores) are let pass.
        classes: of the data.
    """
    if not isinstance(shape, tuple) or len(shape) != 2 or (shape[1] or -1) < 0:
        return
    scores = shape[1]
    if scores < classes and (scores, classes) != (1, 2):
        expected = f"a classifier with one output of {classes} scores, as the data have classes"
        raise checks.value_error("model", expected, f"{name}, with {scores} scores")
    if scores > classes:
        checks.warn(
            f"{name} has {scores} scores, the data have {classes} classes: these are taken for "
            "its first ones, and a file that is made from it holds no names of classes."
        )


def _side(model: Any) -> tuple[int, int] | None:
    """Height and width of the images that a model takes; None if they are open or no images."""
    if model is None:
        return None
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:3]:
        return None
    return shape[1], shape[2]


def _classifier(found: Data, recipe: Recipe, model: Any) -> Classifying:
    """The task of images, or of other arrays, with the scaling that the model needs."""
    if found.kind != "images":
        return Classifying(found, recipe)
    side = _side(model)
    if side is not None and model.input_shape[3] not in (None, found.example_shape[2]):
        count = found.example_shape[2]
        fix = (
            "The images are greyscale: save them in colour, as by Pillow's "
            "Image.open(file).convert('RGB'), or take a model for greyscale images."
            if count == 1
            else f"The images have {count} channels."
        )
        expected = f"images of {model.input_shape[3]} channels, as the model takes them"
        raise checks.value_error("data", expected, recipe.data, fix)
    if model is None:
        name = recipe.preprocess
        scaling = for_new_network(found) if name is None else named(name, found)
    else:
        scaling = scaling_for(model, found, recipe.preprocess or AUTO)
    return Classifying(found, recipe, scaling)


def _texts(found: Data, recipe: Recipe, model: Any) -> tuple[Task, Any]:
    """The task of texts as token ids, and the model that takes these."""
    source: Any = found.source
    if recipe.vocabulary is not None:
        encode = token_models.read_vocabulary(pathlib.Path(recipe.vocabulary), model)
    elif model is None:
        encode = source.vectorize().encode
    else:
        encode = None
    if isinstance(model, keras.Model):
        model, own = token_models.without_tokenizer(model)
        encode = own or encode or token_models.beside(str(recipe.model))
        if encode is None:
            encode = _from_training(source, model)
    if encode is None:
        expected = "the vocabulary of a model that takes token ids"
        raise checks.value_error("vocabulary", expected, None)

    def coded(part: Part) -> Part:
        return Part(encode(part.x), part.y)

    parts: dict[str, Any] = {name: coded(getattr(found, name)) for name in ("train", "val", "test")}
    return Classifying(dataclasses.replace(found, **parts), recipe, encoder=encode), model


def _from_training(source: Any, model: keras.Model) -> data.Encoder:
    """The vocabulary of the training texts, in the size of the model's embedding."""
    rows, length = token_models.sizes(model)
    made: data.Encoder = source.vectorize(rows, length).encode
    checks.warn(
        "The model takes token ids, and no vocabulary is given: that of the training texts is "
        f"taken, {len(made.vocabulary):,} words, {length} tokens a text. It must be the one of the "
        "model's training: see its accuracy below. `vocabulary` names a file."
    )
    return made
