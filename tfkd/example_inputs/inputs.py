"""Input specs of models and exported files, and checks of arrays against them."""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfkd import checks
from tfkd.example_inputs.nests import is_array

# Sizes of made-up inputs where a model leaves them open, in the order in which they are tried.
OPEN_SIZES = (32, 128, 8, 1)
_ONE = "One example? Add the batch axis: `x[None]`, or `.batch(32)` to a data set."


class Input(NamedTuple):
    """Spec of one input: name, shape of one example (-1: any size), dtype.

    A quantized input takes real numbers, or quantized values of its dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    quantized: bool = False

    @classmethod
    def of(cls, name: str, spec: Any) -> Input:
        """The spec of a tensor or tensor spec, whose first axis is the batch."""
        shape = tuple(-1 if size is None else size for size in spec.shape[1:])
        return cls(name, shape, np.dtype(spec.dtype.as_numpy_dtype))


def plain_name(name: object) -> str:
    """The name of an input or output in a file: a Python identifier in ASCII.

    TensorFlow's signatures take no other, nor "self", nor an underscore at the beginning.
    Letters beyond ASCII become their code points.

    Example:
        >>> [plain_name(name) for name in ("my input", "größe", "1st", "class", "_a")]
        ['my_input', 'gr_f6__df_e', 'x_1st', 'x_class', 'x_a']
    """
    text = re.sub(r"[^\w]", "_", unicodedata.normalize("NFC", str(name)))
    plain = re.sub(r"[^\x00-\x7f]", lambda found: f"_{ord(found[0]):x}_", text)
    if keyword.iskeyword(plain) or plain == "self" or not plain.isidentifier():
        return f"x_{plain}"
    return f"x{plain}" if plain.startswith("_") else plain


def inputs_of(model: Any) -> tuple[Input, ...]:
    """Input specs of a Keras model; () if they are unknown, as for a subclassed model."""
    names, tensors = getattr(model, "input_names", None), getattr(model, "inputs", None)
    return tuple(map(Input.of, names, tensors)) if names and tensors else ()


def packed(model: Any, x: Any) -> Any:
    """Converts inputs by name to the input structure of the model."""
    if not inputs_of(model):
        return x
    import tensorflow as tf

    return tf.nest.pack_sequence_as(model.input, list(x.values()))


def by_name(name: str, x: Any, inputs: Sequence[Input], ordered: bool = True) -> Mapping[str, Any]:
    """The inputs of one batch as {input name: array}."""
    names = [spec.name for spec in inputs]
    if isinstance(x, (tuple, list)):
        if not ordered:
            text = f"The file has no manifest that holds their order: pass a dict by name: {names}."
            raise checks.value_error(name, "arrays by name", f"{len(x)} arrays in order", text)
        if len(x) != len(names):
            expected = f"{len(names)} arrays in each batch, one for each of the inputs {names}"
            raise checks.value_error(name, expected, len(x))
        return dict(zip(names, x, strict=True))
    if not isinstance(x, Mapping):
        if len(names) > 1:
            raise checks.type_error(name, f"a dict of arrays with the inputs {names}", x)
        return {names[0]: x}
    if set(x) != set(names):
        # The model's own names, where a file has them in another form.
        plain = {plain_name(key): value for key, value in x.items()}
        if set(plain) == set(names) and len(plain) == len(x):
            return plain
        fix = checks.near(next((key for key in x if key not in names), ""), names)
        raise checks.value_error(name, f"the inputs {names}", sorted(map(str, x)), fix)
    return x


def checked_array(name: str, value: Any, spec: Input, strict: bool) -> np.ndarray:
    """Checks an array against an input spec, and casts it to the dtype."""
    if not is_array(value):
        raise checks.type_error(name, f"an array for input {spec.name!r}", value)
    value = np.asarray(value)
    fits = value.ndim == len(spec.shape) + 1 and all(
        want in (-1, got) for want, got in zip(spec.shape, value.shape[1:], strict=True)
    )
    if not fits:
        shown = ", ".join(["batch", *("any" if size < 0 else str(size) for size in spec.shape)])
        expected = f"examples of shape ({shown}) for input {spec.name!r}"
        raise checks.value_error(name, expected, value, _ONE if value.shape == spec.shape else None)
    return _of_type(name, value, spec, strict)


def _of_type(name: str, value: np.ndarray, spec: Input, strict: bool) -> np.ndarray:
    wanted, kind = spec.dtype.kind, value.dtype.kind
    if wanted == "O":
        if not all(isinstance(text, (str, bytes)) for text in value.flat):
            raise checks.type_error(name, f"texts for input {spec.name!r}", value)
        return value.astype(object, copy=False)
    if spec.quantized:
        if kind == "f" or value.dtype == spec.dtype:
            return value
    elif wanted in "iub" and kind in "iu":
        made = value.astype(spec.dtype, copy=False)
        if wanted != "b" and made is not value and (made != value).any():
            raise checks.value_error(name, f"values of {spec.dtype} for {spec.name!r}", value)
        return made
    elif kind == wanted or wanted not in "fiub" or (not strict and kind in "fiub"):
        return value.astype(spec.dtype, copy=False)
    if wanted in "iub" and not spec.quantized:
        raise checks.type_error(name, f"integers ({spec.dtype}) for input {spec.name!r}", value)
    fix = "Scale the images as the model was trained: `dataset.preprocess(images)`."
    codes = f", or {spec.dtype}," if spec.quantized else ""
    raise checks.type_error(name, f"float values{codes} for input {spec.name!r}", value, fix)


def check_finite(name: str, value: np.ndarray, first: int) -> None:
    """Raises ValueError for NaN or infinity; `first` is the index of the first example."""
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        bad = first + int(np.argmin(np.isfinite(value).reshape(len(value), -1).all(1)))
        fix = f"Example {bad} holds NaN or infinity."
        raise checks.value_error(name, "finite values", value, fix)
