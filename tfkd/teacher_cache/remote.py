"""Remote teachers: the workers of a `tf.data` service add teacher outputs to the batches."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfkd import checks, fingerprints
from tfkd.data import pipelines
from tfkd.keras_internals import ExternalStatePolicy
from tfkd.keras_internals import convert_variables_to_constants_v2 as freeze
from tfkd.teacher_cache.labelling import Labeller, Making
from tfkd.teachers import output_kinds
from tfkd.teachers.forward import as_list, input_names, output_names
from tfkd.teachers.precomputed import PrecomputedTeacher
from tfkd.types import Structure, Teacher

Sharding = tf.data.experimental.service.ShardingPolicy
# A graph is sent as one protocol buffer of at most 2 GiB; 64 MiB are left for its nodes.
_MOST = (2 << 30) - (64 << 20)
_TIMEOUT = 10.0  # seconds to wait for the dispatcher


class RemoteTeacher(PrecomputedTeacher):
    """A teacher that runs in the input pipeline, on the workers of a `tf.data` service.

    For teachers whose outputs cannot be cached (endless data, fresh random augmentation)
    and that are too slow for the training machines. `attach(dataset)` adds the teacher to
    the pipeline, with its weights frozen to constants, and distributes the pipeline to the
    service, whose workers need only TensorFlow: no tfkd and no model file.
    `Distiller(remote, student, ...)` trains on the batches that it returns.

    Start one dispatcher (`tf.data.experimental.service.DispatchServer`) and any number of
    workers (`WorkerServer`) on the machines with the teacher's accelerators.

    Args:
        teacher: as for `tfkd.Distiller`: a model, a SavedModel, a function, or a list.
        x: spec of the inputs: an example batch (B, ...), a `tf.TensorSpec` whose first axis
            is the batch, or a dict, list or tuple of these.
        service: "grpc://host:port" of the dispatcher; None: the teacher runs in the local
            pipeline.
        layers: names of teacher layers whose outputs the losses need.
        dtype: "float16" or "float32": dtype in which outputs are transferred.
        job_name: data sets with the same name share one pass over the data, so that each
            batch goes to one consumer only. None: each has its own pass.

    Raises:
        TypeError, ValueError: for an invalid argument, a layer that does not exist, or a
            teacher of more than 2 GiB, which a pipeline cannot hold.

    Example:
        >>> import numpy as np, tensorflow as tf, tf_keras as keras, tfkd
        >>> from tfkd.teacher_cache import RemoteTeacher
        >>> net = lambda units: keras.Sequential([
        ...     keras.layers.Dense(units, "relu", input_shape=(4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.rand(8, 4).astype("float32"), np.arange(8) % 3
        >>> remote = RemoteTeacher(net(32), x)  # service="grpc://host:port"
        >>> data = remote.attach(tf.data.Dataset.from_tensor_slices((x, y)).batch(4))
        >>> distiller = tfkd.Distiller(remote, net(4), tfkd.losses.LogitsDistillation(2.0))
        >>> distiller.compile(
        ...     "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = distiller.fit(data, epochs=3, verbose=0).history
        >>> len(history["distillation_loss"])
        3
    """

    how = "remote.attach(dataset)"

    def __init__(
        self,
        teacher: Teacher,
        x: Structure,
        service: str | None = None,
        *,
        layers: str | Sequence[str] = (),
        dtype: str = "float32",
        job_name: str | None = None,
    ):
        making = Making(layers, dtype)
        self.service = _check_service(service)
        checks.optional(checks.instance, "job_name", job_name, str, "a name, or None")
        self.job_name = job_name
        teachers = as_list(teacher)
        if any(isinstance(one, PrecomputedTeacher) for one in teachers):
            expected = "a model or function that runs: a cache needs no service"
            raise checks.value_error("teacher", expected, teacher)
        self._spec = tf.nest.map_structure(_spec_of, x)
        labeller = Labeller(teachers, making)
        layout = labeller.layout(tf.nest.map_structure(_two_of, x), output_kinds.examples(x))
        identity = fingerprints.digest([teacher, making.layers])[:12]  # as in `Document.identity`
        super().__init__(layout, identity, "a RemoteTeacher")
        self.output_names = [output_names(one) for one in teachers]
        if not isinstance(x, Mapping):
            self.input_names = [input_names(one) for one in teachers]
        self._function = _frozen(labeller, self._spec, list(layout.spec()))

    def attach(
        self, dataset: tf.data.Dataset, processing_mode: Any = Sharding.OFF
    ) -> tf.data.Dataset:
        """Batches with the teacher's outputs.

        Args:
            dataset: data set of batches x, (x, y) or (x, y, sample_weight). A service runs
                the pipeline on its workers: it may contain arrays, files that the workers
                can read, and TensorFlow functions, but no Python functions. Variables are
                sent with their current value, so an adaptive `Curriculum` stays constant.
            processing_mode: how the workers of the service share the data, a
                `tf.data.experimental.service.ShardingPolicy`. OFF: each worker yields all
                of the data; with one worker in order, so that training is the same as with
                a local teacher. DYNAMIC, for several workers: each batch comes from one of
                them, in no particular order.

        Returns:
            A `tf.data.Dataset` to pass to `fit`, with `steps_per_epoch` if it is endless.

        Raises:
            TypeError, ValueError: for data with another spec than `x`, or a pipeline that
                cannot run on another machine.
            ConnectionError: if there is no dispatcher at `service`.
        """
        checks.instance("dataset", dataset, tf.data.Dataset, "a tf.data.Dataset of batches")
        self._check_spec(dataset.element_spec)
        size = dataset.cardinality()

        def label(*batch):
            x, *others = batch
            made = self.attached(x, self._outputs(x))
            return (made, *others) if others else made

        labelled = pipelines.mapped(dataset, label, pipelines.parallel())
        if self.service is None:
            return labelled
        _check_travels(dataset)
        _check_there(self.service)
        distribute = tf.data.experimental.service.distribute
        found = labelled.apply(distribute(processing_mode, self.service, self.job_name))
        if processing_mode is Sharding.OFF and size == tf.data.INFINITE_CARDINALITY:
            found = found.apply(tf.data.experimental.assert_cardinality(size))
        return pipelines.untuned(found)

    def _outputs(self, x: Any) -> dict[str, Any]:
        pairs = zip(tf.nest.flatten(x), tf.nest.flatten(self._spec), strict=True)
        leaves = [tf.cast(leaf, spec.dtype) for leaf, spec in pairs]
        spec = self.layout.spec()
        outputs = {}
        for (name, form), value in zip(spec.items(), self._function(*leaves), strict=True):
            outputs[name] = tf.ensure_shape(value, (leaves[0].shape[0], *form.shape[1:]))
        return outputs

    def _check_spec(self, element: Any) -> None:
        x = element[0] if isinstance(element, tuple) else element
        expected = f"batches whose inputs are {self._spec}"
        try:
            tf.nest.assert_same_structure(x, self._spec)
        except (TypeError, ValueError) as error:
            raise checks.value_error("dataset", expected, element) from error
        pairs = zip(tf.nest.flatten(x), tf.nest.flatten(self._spec), strict=True)
        if not all(wanted.shape.is_compatible_with(found.shape) for found, wanted in pairs):
            fix = "Batch it, or make the RemoteTeacher with an example of these data."
            raise checks.value_error("dataset", expected, element, fix)


def _check_service(service: Any) -> str | None:
    if service is None:
        return None
    checks.instance("service", service, str, '"grpc://host:port", or None')
    protocol, _, address = service.partition("://")
    host, _, port = address.rpartition(":")
    if not protocol or not host or not port.isdigit():
        raise checks.value_error("service", '"grpc://host:port" of a dispatcher', service)
    return service


def _check_travels(dataset: tf.data.Dataset) -> None:
    """Raises ValueError for Python functions in the pipeline, which other processes lack."""
    ignore = ExternalStatePolicy.IGNORE
    text = dataset._as_serialized_graph(external_state_policy=ignore).numpy()
    graph = tf.compat.v1.GraphDef.FromString(text)
    nodes = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
    found = sorted({node.op for node in nodes if "PyFunc" in node.op})
    if found:
        received = f"one with Python functions ({', '.join(found)})"
        fix = (
            "They run in this process alone: from_generator, numpy_function, py_function, a "
            "TeacherCache. Use functions of TensorFlow on arrays or files."
        )
        raise checks.value_error("dataset", "one that another machine can make", received, fix)


def _check_there(service: str) -> None:
    """Raises ConnectionError if nothing listens there: TensorFlow would retry forever."""
    protocol, _, address = service.partition("://")
    host, _, port = address.rpartition(":")
    if protocol != "grpc":
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT).close()
    except OSError as error:
        raise ConnectionError(
            f"`service`: expected a tf.data dispatcher at {service}, received no answer ({error}). "
            "Start it with tf.data.experimental.service.DispatchServer, or check the address."
        ) from error


def _spec_of(value: Any) -> tf.TensorSpec:
    """The spec of an input, with a batch axis of any size."""
    if not isinstance(value, tf.TensorSpec):
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            expected = "a batch of inputs, or a tf.TensorSpec of one"
            raise checks.type_error("x", expected, value)
        value = tf.TensorSpec(value.shape, tf.as_dtype(value.dtype))
    if not value.shape.rank:
        raise checks.value_error("x", "a shape (B, ...) whose first axis is the batch", value)
    return tf.TensorSpec((None, *value.shape[1:]), value.dtype)


def _two_of(value: Any) -> Any:
    """Two examples, from which the layout of the outputs is determined."""
    if not isinstance(value, tf.TensorSpec):
        return value[:2]
    if None in value.shape[1:]:
        fix = "Pass an example batch instead."
        raise checks.value_error("x", "a shape that is known except for the batch", value, fix)
    return tf.zeros((2, *value.shape[1:]), value.dtype)


def _frozen(labeller: Labeller, spec: Any, names: list[str]) -> Any:
    """The forward pass with weights frozen to constants: leaves of x → list of outputs."""

    def forward(*leaves):
        made = labeller._outputs(tf.nest.pack_sequence_as(spec, leaves), None, None)
        return [made[name] for name in names]

    traced = tf.function(forward, autograph=False).get_concrete_function(*tf.nest.flatten(spec))
    held = [*traced.captured_inputs]
    size = sum(v.dtype.size * v.shape.num_elements() for v in traced.graph.variables)
    size += sum(t.dtype.size * t.shape.num_elements() for t in held if t.dtype != tf.resource)
    if size > _MOST:
        expected = "at most 2 GiB of weights: a pipeline holds them as constants"
        fix = 'Use frozen_copy(teacher, dtype="bfloat16"), or label once with a TeacherCache.'
        raise checks.value_error("teacher", expected, f"{size / 2**30:.2f} GiB", fix)
    return freeze(traced, lower_control_flow=False)
