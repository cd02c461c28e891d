"""The part of `tfkd compare` for classifiers of images, texts and other numbers."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from tfkd.cli import data_flags
from tfkd.cli.terminal import Terminal

if TYPE_CHECKING:
    from tfkd.data import Encoder
    from tfkd.recipes.data import Data
    from tfkd.recipes.scaling import Scaling
    from tfkd.report import Table


def table(
    opened: dict[str, Any],
    paths: dict[str, str],
    data: Data,
    args: argparse.Namespace,
    terminal: Terminal,
) -> Table:
    """Scores and times all models, each with examples as it takes them.

    Args:
        opened: the models by name, and the paths of those that are exported files.
        paths: the paths of all.
        data: what they are measured on.
        args: the flags.
        terminal: what is said goes there.

    Raises:
        ValueError: if the models can't be measured on one input.
    """
    from tfkd import report
    from tfkd.recipes.data import warn_of_guessing

    for name, model in opened.items():
        _check_fit(name, model, data)
    part = data_flags.part_of(data, args)
    x: Any = part.x
    if data.kind == "images":
        opened, scaling = _scaled_alike(opened, data, args, terminal)
        x = scaling(part.x)
    elif data.kind == "texts":
        opened, encode = _without_strings(opened, paths)
        x = _encoded(opened, part.x, encode, args)
    y = _renumbered(opened, data, part.y, terminal)
    terminal.say(f"measuring {', '.join(opened)} on {len(part):,} examples")
    found = report.compare(
        opened,
        (x, y),
        threads=args.threads,
        runs=args.runs,
        seconds=args.seconds,
        original=args.original,
    )
    for row in found.rows:
        if row.accuracy is not None:
            warn_of_guessing(row.model, row.accuracy.mean / 100, y)
    note = f"{data.name}: {len(part):,} examples of the {args.part} part, {data.kind}."
    return dataclasses.replace(found, notes=[note, *found.notes])


def _check_fit(name: str, model: Any, data: Data) -> None:
    """Raises ValueError unless a model has one input and output, of the shapes of the data."""
    from tfkd import runtime
    from tfkd.recipes.opening import check_scores

    if isinstance(model, pathlib.Path):
        with runtime.Predictor(model, warmup=0) as predictor:
            shapes, given = ([p.shape for p in ps] for ps in (predictor.inputs, predictor.outputs))
    else:
        shapes = [tuple(-1 if n is None else n for n in one.shape) for one in model.inputs]
        given = [tuple(one.shape) for one in model.outputs]
    if len(shapes) != 1 or len(given) != 1:
        raise ValueError(
            f"{name} has inputs: {len(shapes)}, outputs: {len(given)}; the command measures models "
            "with one of each. In Python: tfkd.report.compare(..., output=NAME)."
        )
    check_scores(name, given[0], data.num_classes)
    wanted, shape = shapes[0][1:], data.example_shape
    if data.kind == "texts":
        return
    fits = len(wanted) == len(shape) and all(
        n < 1 or n == m for n, m in zip(wanted, shape, strict=True)
    )
    if not fits:
        takes = "×".join("?" if n < 1 else str(n) for n in wanted) or "single numbers"
        have = "×".join(map(str, shape)) or "single numbers"
        raise ValueError(f"{name} takes examples of {takes}, and those of {data.name} are {have}.")


def _scaled_alike(
    opened: dict[str, Any], data: Data, args: argparse.Namespace, terminal: Terminal
) -> tuple[dict[str, Any], Scaling]:
    """The models for images that are scaled in one way, and that way.

    Files are taken as they are; a Keras model that expects another scaling gets a Rescaling
    layer in front.

    Raises:
        ValueError: if two files take pixels in different ways.
    """
    import tf_keras as keras

    terminal.say("finding how the models take pixels")
    scalings = {name: _scaling(model, data, args) for name, model in opened.items()}
    for name, one in scalings.items():
        terminal.say(f"{name}: {one}")
    files = [name for name, model in opened.items() if isinstance(model, pathlib.Path)]
    common = scalings[(files or list(opened))[0]]
    found = {}
    for name, model in opened.items():
        own = scalings[name]
        if _same(own, common):
            found[name] = model
        elif name in files:
            raise ValueError(
                f"{files[0]} takes pixels as {_numbers(common)} and {name} as {_numbers(own)}: "
                "files that take pixels in different ways can't be measured on the same input. "
                "Compare them one by one."
            )
        else:
            # (pixels − m) / s of the model from (pixels − c) / d of the data.
            ratio = np.divide(common.std, own.std)
            offset = (np.array(common.mean) - own.mean) / own.std
            rescale = keras.layers.Rescaling(ratio.tolist(), offset.tolist())
            image = keras.Input(model.input_shape[1:])
            found[name] = keras.Model(image, model(rescale(image)), name=model.name)
    return found, common


def _scaling(model: Any, data: Data, args: argparse.Namespace) -> Scaling:
    """The scaling of one model: that of its file, of the flag, or found by values."""
    from tfkd import runtime
    from tfkd.recipes.preprocessing import scaling_for
    from tfkd.recipes.scaling import AUTO, Scaling, to_pixels

    if not isinstance(model, pathlib.Path):
        return scaling_for(model, data, args.preprocess)
    with runtime.Predictor(model) as predictor:
        unit = to_pixels(data.train.x)
        if predictor.scaling is not None and unit is not None:
            return Scaling("as in the file", *predictor.scaling, to_pixels=unit)
        if args.preprocess != AUTO:
            return scaling_for(None, data, args.preprocess)
        return scaling_for(lambda images: predictor(np.asarray(images)), data)


def _renumbered(
    opened: dict[str, Any], data: Data, y: np.ndarray, terminal: Terminal
) -> np.ndarray:
    """The labels, numbered as the labels in the files are, if these are the same in another order.

    Raises:
        ValueError: if two files number the same classes differently.
    """
    from tfkd import runtime

    orders: dict[tuple[str, ...], str] = {}
    for name, model in opened.items():
        if isinstance(model, pathlib.Path):
            with runtime.Predictor(model, warmup=0) as predictor:
                labels = predictor.labels
            if isinstance(labels, tuple) and labels != data.class_names:
                if sorted(labels) == sorted(data.class_names):
                    orders.setdefault(labels, name)
                else:
                    terminal.warn(
                        f"{name} calls its classes {', '.join(labels[:5])}, and {data.name} "
                        f"{', '.join(data.class_names[:5])}: they are taken for the same by number."
                    )
    if len(orders) > 1:
        raise ValueError(
            f"{' and '.join(orders.values())} number the classes differently: compare them one by "
            "one."
        )
    for labels, name in orders.items():
        terminal.warn(f"{name} numbers the classes in another order than {data.name}: as it does.")
        return np.array([labels.index(one) for one in data.class_names])[y]
    return y


def _same(one: Scaling, other: Scaling) -> bool:
    pairs = ((one.mean, other.mean), (one.std, other.std))
    return all(np.allclose(a, b, rtol=1e-3, atol=0.05) for a, b in pairs)


def _numbers(scaling: Scaling) -> str:
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (scaling.mean, scaling.std))
    return f"(pixels - {mean}) / {std}"


def _without_strings(
    opened: dict[str, Any], paths: dict[str, str]
) -> tuple[dict[str, Any], Encoder | None]:
    """The models for token ids and their tokenizer, if one of them takes these.

    Keras models lose the tokenizers inside them then.

    Raises:
        ValueError: if two models have different tokenizers.
    """
    from tfkd import runtime
    from tfkd.recipes.token_models import beside, without_tokenizer

    encoders: dict[str, Any] = {}
    for name, model in opened.items():
        own = beside(paths[name])
        if own is None and isinstance(model, pathlib.Path):
            with runtime.Predictor(model, warmup=0) as predictor:
                own = predictor.encoder
        if own is not None:
            encoders[name] = own
    if not encoders:
        return opened, None
    found = dict(opened)
    for name, model in opened.items():
        if not isinstance(model, pathlib.Path):
            found[name], own = without_tokenizer(model)
            if own is not None:
                encoders[name] = own
    (first, one), *others = encoders.items()
    for name, other in others:
        if (one.vocabulary, one.max_length) != (other.vocabulary, other.max_length):
            raise ValueError(
                f"{first} and {name} have different tokenizers: they can't be measured on the "
                "same token ids. Compare them one by one."
            )
    return found, one


def _encoded(
    opened: dict[str, Any], texts: np.ndarray, encode: Encoder | None, args: argparse.Namespace
) -> Any:
    """Token ids by the tokenizer of the flag or of the models; else texts, if they take these."""
    from tfkd import runtime
    from tfkd.data import Encoder

    if args.encoder:
        return Encoder.load(args.encoder)(texts)
    if encode is not None:
        return encode(texts)
    for model in opened.values():
        if not isinstance(model, pathlib.Path):
            if model.inputs[0].dtype == "string":
                return texts.reshape(-1, *[1] * (len(model.inputs[0].shape) - 1))
        else:
            with runtime.Predictor(model, warmup=0) as predictor:
                if predictor.inputs[0].dtype == object:
                    return texts.reshape(-1, *[1] * (len(predictor.inputs[0].shape) - 1))
    raise ValueError(
        "None of the files holds a tokenizer or has one beside it: pass --encoder=FILE.json, which "
        "tfkd.data.Encoder.save wrote when the model was trained."
    )
