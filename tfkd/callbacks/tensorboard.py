"""TensorBoard callback with loss terms, weights, temperatures and hyper-parameters.

Tags, and whether their x axis is the epoch or the optimizer's step:

    epoch_<metric>                       epoch   as in Keras
    distillation/<term>                  epoch   losses and agreement
    weights/, temperature/, learning_rate  epoch
    distillation_by_step/<term>          step    validation always, training on request
    metrics_by_step/<metric>, weights_by_step/, ...   step   on request

Runs are those of Keras, `train` and `validation`, in which a curve has the same tag, so
that TensorBoard overlays the two. Hyper-parameters and text are in their parent folder.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from typing import Any, Literal, TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from tfkd import checks, replicas
from tfkd.callbacks import describe
from tfkd.distillation.distiller import Distiller
from tfkd.types import Path

# Names and values of the HParams tab; None leaves a name out. False: no such tab.
HParams: TypeAlias = dict[str, float | str | bool | None] | Literal[False]

_BY_STEP = "_by_step"


class TensorBoard(keras.callbacks.TensorBoard):
    """Writes logs for TensorBoard: losses, weights, temperatures, hyper-parameters, models.

    Extends `tf_keras.callbacks.TensorBoard`, whose arguments and curves are unchanged.
    With a `tfkd.Distiller` it adds each loss term with its weight and temperature, the
    weight of the student's loss, and the agreement of both models. With any model it adds
    the learning rate (also of a schedule, also inside a `LossScaleOptimizer`), the
    hyper-parameters and a text that describes the model. Weights, temperatures and rates
    are the values of their schedules at the step at which they are written.

    If `fit` is called again with this callback, epochs continue those of the previous
    call. Of several workers only the chief writes.

    Args:
        log_dir: folder of this run's logs, a string or path. Give each run its own folder
            under a common parent, and open the parent in TensorBoard.
        per_step: also write every n optimizer steps: False, a number n, or True for every
            step. A point is the mean over the steps since the previous point (the `batch_`
            curves of Keras's `update_freq` are the mean since the start of the epoch). With
            `steps_per_execution` there is at most one point per execution. Each point
            waits for the device once.
        hparams: names and values (numbers, strings or bools) for the HParams tab, in
            addition to those read from the model. They override those of the same name; a
            value of None omits the name. False writes no hyper-parameters at all. Runs
            with equal hyper-parameters (seeds) appear as one group.
        summary: whether to write the text about the models; a string of Markdown is
            appended to it.
        **kwargs: arguments of `tf_keras.callbacks.TensorBoard`, such as
            `histogram_freq`, `update_freq` or `profile_batch`.

    Raises:
        ValueError, TypeError: for an argument that is none of these.

    Example:
        >>> import tempfile, pathlib, numpy as np, tf_keras as keras, tfkd
        >>> model = keras.Sequential([keras.layers.Dense(1, input_shape=(2,))])
        >>> model.compile("sgd", "mse")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     board = tfkd.callbacks.TensorBoard(folder, per_step=2, write_graph=False)
        ...     _ = model.fit(np.ones((8, 2)), np.ones(8), 2, verbose=0, callbacks=[board])
        ...     sorted(path.name for path in pathlib.Path(folder).iterdir() if path.is_dir())
        ['train']
    """

    def __init__(
        self,
        log_dir: Path = "logs",
        per_step: bool | int = False,
        hparams: HParams | None = None,
        summary: bool | str = True,
        **kwargs: Any,
    ):
        _check_log_dir(log_dir)
        _check_keras_arguments(kwargs)
        super().__init__(log_dir=log_dir, **kwargs)
        if not isinstance(per_step, bool):
            checks.integer("per_step", per_step, 1, "True, False or an integer of at least 1")
        self.per_step = int(per_step)  # True becomes 1: every step
        self.hparams = _check_hparams(hparams)
        self.summary = checks.instance("summary", summary, (bool, str), "a bool or Markdown text")

        self._elsewhere: tempfile.TemporaryDirectory[str] | None = None
        self._described: keras.Model | None = None
        self._last_epoch = -1
        self._epoch_offset = 0
        self._first_batch = 0  # of the current execution
        self._steps = 0  # optimizer steps as counted on the host
        self._last_point = 0
        self._sums: dict[str, np.ndarray] = {}

    def _get_log_write_dir(self) -> str:
        """The folder to which this process writes; a temporary one if it is not the chief.

        All workers must write, since reading some values needs all of them. Keras would
        use a subfolder of the log folder, which TensorBoard shows as a run, and which stays
        if the worker is killed.
        """
        if replicas.writes(self.model):
            return super()._get_log_write_dir()
        if self._elsewhere is None:
            self._elsewhere = tempfile.TemporaryDirectory(prefix="tfkd-logs-")
        return self._elsewhere.name

    def _delete_tmp_write_dir(self) -> None:
        if self._elsewhere is not None:
            self._elsewhere.cleanup()
            self._elsewhere = None

    @property
    def _root_writer(self) -> tf.summary.SummaryWriter:
        # Stored with Keras's own writers, which it closes when training ends.
        if "root" not in self._writers:
            self._writers["root"] = tf.summary.create_file_writer(self._log_write_dir)
        return self._writers["root"]

    def _own_names(self) -> list[str]:
        """Names in the logs that only a Distiller has."""
        if not isinstance(self.model, Distiller):
            return []
        names = ["student_loss", "distillation_loss", "total_loss", "agreement"]
        return names + [tracker.name for tracker in self.model._term_trackers]

    def _iterations(self) -> int:
        """Returns the optimizer's step, for which it waits for the device."""
        optimizer = getattr(self.model, "optimizer", None)
        counter = getattr(optimizer, "iterations", self.model._train_counter)
        return int(describe.scalar(counter))

    def _implements_train_batch_hooks(self) -> bool:
        # The first batch determines the batch size, and builds the models for the text.
        wanted = self.per_step or self.update_freq != "epoch" or self._described is not self.model
        return bool(wanted or super()._implements_train_batch_hooks())

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Starts to count steps from the optimizer's step."""
        super().on_train_begin(logs)
        self._epoch_offset = 0
        self._steps = self._last_point = self._iterations()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Resets the sums, as Keras has just reset the metrics."""
        super().on_epoch_begin(epoch, logs)
        self._sums = {}

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Remembers the first batch of this execution."""
        super().on_train_batch_begin(batch, logs)
        self._first_batch = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Describes the models once; writes a point if one is due."""
        # Without `update_freq` Keras would format all metrics but write none.
        super().on_train_batch_end(batch, logs if self.update_freq != "epoch" else None)
        steps = batch + 1 - self._first_batch
        self._steps += steps
        if self._described is not self.model:
            self._described = self.model
            self._describe(steps)
        # Steps are counted on the host, since reading the optimizer's step waits for it.
        due = self.per_step and self._steps // self.per_step > self._last_point // self.per_step
        if due and isinstance(logs, dict):
            # Loss scaling may skip steps: the optimizer's count is the true one.
            self._steps = self._last_point = self._iterations()
            self._write(self._train_writer, self._step_values(logs), self._steps)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Writes the epoch's curves, after those of earlier calls of `fit`."""
        if epoch + self._epoch_offset <= self._last_epoch:
            self._epoch_offset = self._last_epoch + 1 - epoch
        self._last_epoch = epoch + self._epoch_offset
        super().on_epoch_end(self._last_epoch, logs)

    def on_test_end(self, logs: dict[str, float] | None = None) -> None:
        """Writes the results of `evaluate` at the optimizer's step."""
        own = set(self._own_names())
        logs = logs or {}
        super().on_test_end({name: v for name, v in logs.items() if name not in own})
        values = {self._step_tag(n): v for n, v in logs.items() if n in own or self.per_step}
        if values:
            self._write(self._val_writer, values, self._iterations())

    def _log_epoch_metrics(self, epoch: int, logs: dict[str, float] | None) -> None:
        # Called by Keras's on_epoch_end; gives the Distiller's terms their own tags.
        train, validation, others = {}, {}, {}
        own = self._own_names()
        for name, value in (logs or {}).items():
            if name in own:
                train[f"distillation/{name}"] = value
            elif name.startswith("val_") and name[4:] in own:
                validation[f"distillation/{name[4:]}"] = value
            else:
                others[name] = value
        super()._log_epoch_metrics(epoch, others)
        self._write(self._train_writer, {**train, **self._settings()}, epoch)
        if validation:
            self._write(self._val_writer, validation, epoch)

    def _collect_learning_rate(self, logs: dict[str, float]) -> dict[str, float]:
        return logs  # Keras adds only rates of schedules; `_settings` adds all of them

    def _settings(self, suffix: str = "") -> dict[str, float]:
        """Weights, temperatures and the learning rate of this step, by tag."""
        values = {}
        if isinstance(self.model, Distiller):
            for name, value in self.model.scheduled_values().items():
                kind, _, term = name.partition("/")
                if kind == "student_loss_weight":
                    kind, term = "weight", "student_loss"
                group = "weights" if kind == "weight" else kind
                values[f"{group}{suffix}/{term}"] = value
        rate = describe.learning_rate(getattr(self.model, "optimizer", None))
        if rate is not None:
            values[f"learning_rate{suffix}"] = rate
        return values

    def _step_tag(self, name: str) -> str:
        group = "distillation" if name in self._own_names() else "metrics"
        return f"{group}{_BY_STEP}/{name}"

    def _step_values(self, logs: dict[str, float]) -> dict[str, float]:
        """All values at this step, by tag; metrics are means since the previous point."""
        means = [m for m in self.model.metrics if m.name in logs and _is_plain_mean(m)]
        values = dict(logs)
        if means:
            # One tensor for all metrics waits for the device only once.
            parts = [tf.cast(v, tf.float32) for m in means for v in (m.total, m.count)]
            sums = tf.stack(parts).numpy().astype(np.float64).reshape(-1, 2)
            for metric, now in zip(means, sums, strict=True):
                before = self._sums.get(metric.name, np.zeros(2))
                if now[1] < before[1]:  # it was reset, as by an `evaluate` during the epoch
                    before = np.zeros(2)
                self._sums[metric.name] = now
                total, count = now - before
                if count > 0:
                    values[metric.name] = total / count
        tagged = {self._step_tag(name): value for name, value in values.items()}
        return {**tagged, **self._settings(_BY_STEP)}

    def _write(self, writer: tf.summary.SummaryWriter, values: dict[str, float], step: int) -> None:
        """Writes all scalars as one record, which costs less than many small writes."""
        record = Summary()
        for tag, value in values.items():
            record.MergeFrom(scalar_pb(tag, float(value)))
        if values:
            with tf.summary.record_if(True), writer.as_default():
                tf.summary.experimental.write_raw_pb(record.SerializeToString(), step=step)

    def _describe(self, steps: int) -> None:
        """Writes hyper-parameters and text, which are known after the first batch."""
        with tf.summary.record_if(True), self._root_writer.as_default():
            if self.hparams is not False:
                read = describe.hyper_parameters(self.model, steps)
                values = {**read, **self.hparams}
                hparams_api.hparams({k: v for k, v in values.items() if v is not None})
            if self.summary is not False:
                text = describe.summary(self.model)
                if isinstance(self.summary, str):
                    text += "\n\n" + self.summary
                tf.summary.text("models", text, step=self._last_epoch + 1)
        self._root_writer.flush()


def _is_plain_mean(metric: keras.metrics.Metric) -> bool:
    """Whether a metric is total / count itself, not a function of it, such as its root."""
    mean = keras.metrics.Mean
    return isinstance(metric, mean) and type(metric).result is mean.result


def _check_log_dir(log_dir: Path) -> None:
    checks.instance("log_dir", log_dir, (str, os.PathLike), "a folder, as string or path")
    if not os.fspath(log_dir):
        raise checks.value_error("log_dir", "the name of a folder", log_dir)
    if os.path.isfile(log_dir):
        raise checks.value_error("log_dir", "a folder", log_dir, "There is a file of that name.")


def _check_keras_arguments(kwargs: dict[str, Any]) -> None:
    parent = inspect.signature(keras.callbacks.TensorBoard.__init__).parameters
    known = [name for name in parent if name not in ("self", "kwargs", "log_dir")]
    own = ["log_dir", "per_step", "hparams", "summary"]
    for name, value in kwargs.items():
        if name not in known:
            fix = checks.near(name, known + own) or f"There are: {', '.join(own + known)}."
            raise checks.type_error(name, "an argument of TensorBoard", value, fix)
    freq = kwargs.get("update_freq", "epoch")
    if freq not in ("batch", "epoch"):
        checks.integer("update_freq", freq, 1, "'epoch', 'batch' or an integer of at least 1")


def _check_hparams(hparams: HParams | None) -> HParams:
    if hparams is None or hparams is False:
        return {} if hparams is None else False
    checks.instance("hparams", hparams, dict, "a dict of names and values, False or None")
    for name, value in hparams.items():
        checks.instance("hparams", name, str, "names that are strings")
        if not (value is None or isinstance(value, (str, bool, np.bool_))):
            checks.finite(f"hparams[{name!r}]", value, "a finite number, a string, a bool or None")
    return dict(hparams)
