"""Type aliases of public signatures: tensors, nested structures of them, data, paths.

TensorFlow and Keras are imported for type checkers only, never at run time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras

Path: TypeAlias = Union[str, "os.PathLike[str]"]

# An array or a tensor; a symbolic one (KerasTensor) while a functional model is built.
Tensor: TypeAlias = "np.ndarray | tf.Tensor"

# One tensor, or lists, tuples and dicts of tensors, as Keras models take and return them.
Structure: TypeAlias = "Tensor | Sequence[Structure] | Mapping[str, Structure]"

# Examples as users have them: see `tfkd.example_inputs` for how each form is read.
Data: TypeAlias = "Structure | tf.data.Dataset | keras.utils.Sequence | Iterable[Structure]"

# A model, a restored SavedModel or a function of tensors, or several; or a `tfkd.TeacherCache`.
Teacher: TypeAlias = "keras.Model | Callable[..., Structure] | Sequence[Teacher]"

# From a built model, or a single layer as a model, to the milliseconds that one call of it
# takes where it will run; `tfkd.report.LayerTimes` is one. If it has a method `beside(model,
# other)`, as that one has, pruned models are measured by it beside the model as it is.
Measure: TypeAlias = "Callable[[keras.Model], float]"

# A name, a path such as "backbone/block3" or a pattern such as "stage1_*"; several; or layers.
Layers: TypeAlias = "str | keras.layers.Layer | Iterable[str | keras.layers.Layer]"
