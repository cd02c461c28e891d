"""Reads the examples that a user gives, in every form: what each `data` and `verify` takes.

**data** is one of:

- an array or tensor (N, ...), for a model with one input;
- a dict of arrays by input name, or a list of arrays, one for each input in order;
- a tuple (x, y) or (x, y, sample_weight) with x as above. For a model with several
  inputs a tuple that begins with an array is one array for each input instead: give
  labels with them as ([a, b], y) or ({"a": a, "b": b}, y);
- a list, `tf.data.Dataset`, Keras Sequence, generator or iterator of batches, each of a
  form above. A list of arrays that are not one for each input is such batches;
- a list whose arrays are all inputs, where nothing says how many a model takes, as with a
  function in place of a model; there a tuple of arrays is (x, y) if labels are wanted;
- a data set of `tfkd.data`, of which the training part is read, or the test part where
  something is verified or scored, through its `preprocess` where the model takes floats.

Labels and weights are dropped where inputs alone are wanted. Arrays become what the model
takes; but integers for an input of floats, as images without scaling are, are an error
where ranges are set, files are proved or predictions are made.

**max_examples** ends the reading. None stands for all of the examples, but for the first
`ENDLESS` of data sets without an end, and of generators and iterators, which do not say
whether they end. Where every example counts (scores, caches, tables, predictions) there
is no such limit, and a data set without an end is refused.

**verify** is True: compare on inputs that are made up; False: do not compare; or data as
above: compare on these.

Neither Keras nor TensorFlow is imported here: `tfkd.runtime` does without.
"""

from tfkd.example_inputs.forms import ENDLESS, Batch, in_order
from tfkd.example_inputs.inputs import Input, inputs_of, packed
from tfkd.example_inputs.nests import is_array, leaves, length, mapped, take
from tfkd.example_inputs.reading import arrays, batches, collect, to_verify

__all__ = [
    "ENDLESS", "Batch", "Input", "arrays", "batches", "collect", "in_order", "inputs_of",
    "is_array", "leaves", "length", "mapped", "packed", "take", "to_verify",
]  # fmt: skip
