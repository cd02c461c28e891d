"""Reads example data in every supported form, for the arguments `data` and `verify`.

**data** is one of:

- an array or tensor (N, ...), for a model with one input;
- a dict of arrays by input name, or a list of arrays, one per input in order;
- a tuple (x, y) or (x, y, sample_weight) with x as above. For a model with several
  inputs, a tuple that begins with an array holds one array per input instead: pass
  labels as ([a, b], y) or ({"a": a, "b": b}, y);
- a list, `tf.data.Dataset`, Keras Sequence, generator or iterator of batches, each in a
  form above. A list of arrays whose number is not that of the inputs is such batches;
- if the number of inputs is not known, as for a function in place of a model: a list
  of arrays is the inputs, and a tuple of arrays is (x, y) if labels are needed;
- a data set of `tfkd.data`: its training part, or its test part for verification and
  scoring, passed through its `preprocess` if the model takes floats.

Labels and weights are dropped if only inputs are needed. Arrays are cast to the
model's input dtype; but integers for a float input, such as unscaled images, are an
error in calibration, verification and prediction.

**max_examples** limits the reading. None means all examples, except for endless data
sets, generators and iterators, of which the first `ENDLESS` are read. Where every
example counts (scores, caches, tables, predictions) there is no such limit, and an
endless data set is an error.

**verify** is True to compare on random inputs, False not to compare, or data as above
to compare on these.

Neither Keras nor TensorFlow is imported here, since `tfkd.runtime` needs neither.
"""

from tfkd.example_inputs.forms import ENDLESS, Batch, in_order
from tfkd.example_inputs.inputs import OPEN_SIZES, Input, inputs_of, packed, plain_name
from tfkd.example_inputs.nests import as_tuples, is_array, leaves, length, mapped, take
from tfkd.example_inputs.reading import arrays, batches, collect, to_verify

__all__ = [
    "ENDLESS", "OPEN_SIZES", "Batch", "Input", "arrays", "as_tuples", "batches", "collect",
    "in_order",
    "inputs_of", "is_array", "leaves", "length", "mapped", "packed", "plain_name", "take",
    "to_verify",
]  # fmt: skip
