"""TeacherCache: soft targets and features of a teacher, computed once and read in training."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import ArrayLike

from tfkd import checks, example_inputs, fingerprints
from tfkd.teacher_cache import batches as feeding
from tfkd.teacher_cache import building, document
from tfkd.teacher_cache.keys import keys, places, read
from tfkd.teacher_cache.labelling import Making
from tfkd.teachers import output_kinds
from tfkd.teachers.features import FINAL
from tfkd.teachers.layout import Layout, put
from tfkd.teachers.precomputed import PROBABILITY, PrecomputedTeacher
from tfkd.types import Data, Structure, Teacher


@keras.saving.register_keras_serializable(package="tfkd")
class TeacherCache(PrecomputedTeacher):
    """The outputs of a teacher for a data set, on disk; a teacher for `tfkd.Distiller`.

    `TeacherCache.build` runs the teacher over the data once; `TeacherCache(path)` opens
    the cache. No teacher is in memory during training: `cache.batches(x, y, batch_size)`
    yields batches with the teacher's outputs for their examples, from which
    `Distiller(cache, student, ...)` learns. Examples are identified by a hash of their
    content, so that any subset in any order gets its outputs.

    With augmentation the teacher sees `views` fixed versions of each example, each a
    function of (example, view), and the student is trained on the same ones (Beyer et
    al. 2022, https://arxiv.org/abs/2106.05237, call this consistent teaching). Training
    for more epochs than views repeats views.

    Files are memory-mapped: memory use does not grow with the data.

    Args:
        path: the folder of a finished cache.
        checksums: verify the SHA-256 of all files, which reads them once; otherwise only
            their sizes are checked.
        wait: seconds to wait for shards that other processes are still writing.

    Raises:
        ValueError: if the folder holds no cache, or one that is unfinished or damaged.

    Example:
        >>> import numpy as np, tempfile, tf_keras as keras, tfkd
        >>> net = lambda units: keras.Sequential([
        ...     keras.layers.Dense(units, "relu", input_shape=(4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.rand(8, 4).astype("float32"), np.arange(8) % 3
        >>> cache = tfkd.TeacherCache.build(tempfile.mkdtemp(), net(32), x, progress=False)
        >>> cache
        TeacherCache(8 examples, 1 view, final output (3,) float16, 22 bytes an example)
        >>> distiller = tfkd.Distiller(cache, net(4), tfkd.losses.LogitsDistillation(2.0))
        >>> distiller.compile(
        ...     "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = distiller.fit(
        ...     cache.batches(x, y, batch_size=4), steps_per_epoch=2, epochs=3, verbose=0)
        >>> len(history.history["distillation_loss"])
        3
    """

    def __init__(self, path: str | os.PathLike, checksums: bool = True, wait: float = 0.0):
        checks.instance("path", path, (str, os.PathLike), "the path of a folder")
        checks.instance("checksums", checksums, bool, "True or False")
        checks.non_negative("wait", wait)
        self.path = Path(path)
        self._document = document.read(self.path)
        self._shards = building.shards_of(self.path, self._document)
        self._check_whole(checksums, time.monotonic() + wait)
        layout, where = self._with_inferred_kinds(), f"the teacher cache {self.path}"
        super().__init__(layout, self._document.identity, where)
        self.output_names = self._document.settings.get("output_names", ())
        self.input_names = self._document.settings.get("input_names", ())

    def _with_inferred_kinds(self) -> Layout:
        """The layout, in which outputs stored as logits are marked if they are probabilities."""
        layout = self._document.layout
        if layout.top_k is not None or self._document.settings.get("activation") == "linear":
            return layout
        first, finals = np.arange(min(len(self), output_kinds.EXAMPLES)), []
        for slot in layout.finals:
            evidence = output_kinds.Evidence()
            if slot.squash is None and slot.shape and np.dtype(slot.dtype).kind == "f":
                output_kinds.see(evidence, self._shards.gather(slot.name, first, 0 * first))
            if evidence.seen == "one":
                slot = dataclasses.replace(slot, squash=PROBABILITY)
                checks.warn(
                    f"the teacher cache {self.path} holds probabilities in place of logits "
                    f"({slot.name}: all in [0, 1], and every row sums to 1). They are used as "
                    "probabilities. Build it again to store logits, which are more precise."
                )
            finals.append(slot)
        return dataclasses.replace(layout, finals=tuple(finals))

    def _check_whole(self, checksums: bool, until: float) -> None:
        while self._shards.missing() and time.monotonic() < until:
            time.sleep(0.05)
        missing = self._shards.missing()
        fix = "Call TeacherCache.build again with the same arguments: it makes what is missing."
        if missing:
            what = f"{len(missing)} of {self._shards.number} shards are not finished. {fix}"
            raise checks.value_error("path", "a finished teacher cache", str(self.path), what)
        for number in range(self._shards.number):
            problem = self._shards.problem(number, checksums)
            if problem is not None:
                expected = "an undamaged teacher cache"
                raise checks.value_error("path", expected, str(self.path), f"{problem}. {fix}")

    def __repr__(self) -> str:
        finals = [f"{slot.shape} {slot.dtype}" for slot in self.layout.finals]
        shown = f"final output {', '.join(finals)}"
        if self.layout.top_k is not None:
            shown += f", top {self.layout.top_k}"
        layers = "".join(f", {n} {slot.shape}" for n, slot in self.layout.features.items())
        views = "1 view" if self.views == 1 else f"{self.views} views"
        return (
            f"TeacherCache({len(self):,} examples, {views}, {shown}{layers}, "
            f"{self.bytes_per_example:,} bytes an example)"
        )

    def __len__(self) -> int:
        return self._document.count

    @property
    def views(self) -> int:
        """Number of augmented versions of each example."""
        return self._document.views

    @property
    def bytes_per_example(self) -> int:
        """Bytes on disk per example, with all views and its key."""
        return self._shards.bytes_per_example

    @classmethod
    def build(
        cls,
        path: str | os.PathLike,
        teacher: Teacher,
        data: Data,
        *,
        layers: str | Sequence[str] = (),
        dtype: str = "float16",
        top_k: int | None = None,
        temperature: float | None = None,
        views: int = 1,
        augment: Callable[[Any, Any], Any] | None = None,
        preprocess: Callable[[Any], Any] | None = None,
        seed: int = 0,
        batch_size: int = 256,
        shard_size: int | None = None,
        part: tuple[int, int] = (0, 1),
        wait: float = 0.0,
        overwrite: bool = False,
        progress: bool = True,
    ) -> TeacherCache:
        """Runs a teacher over data and writes its outputs; resumes an interrupted build.

        An existing cache is reused if it was made from the same teacher, data, augmentation
        and settings, and is an error otherwise. Warns if the teacher or `augment` is not
        deterministic.

        Args:
            path: a folder, created if missing.
            teacher: as for `tfkd.Distiller`: a model, a SavedModel, a function, or a list
                of these.
            data: the examples, in any form of `tfkd.example_inputs`; if the number of the
                teacher's inputs is not known, a tuple of arrays is the inputs. NumPy memory
                maps are read shard by shard, batches are first read into memory. An array
                of file names works if `preprocess` reads them.
            layers: names of teacher layers whose outputs to store, for losses on features.
            dtype: "float16" or "float32", the stored dtype of floats.
            top_k: store only the k highest scores and one bucket for the others; for
                `LogitsDistillation` with the `temperature` given here only.
            temperature: temperature of the loss, needed with `top_k`.
            views: number of augmented versions of each example.
            augment: `augment(batch, seed)` → batch, as in `tfkd.data.batches`; applied to
                each example separately.
            preprocess: `preprocess(batch)` → batch, applied after `augment`.
            seed: seed of the augmentation.
            batch_size: examples per forward pass.
            shard_size: examples per shard; by default at most 65,536 and 64 MiB.
            part: (i, n): build only every n-th shard from the i-th, so that n processes
                share the work in one folder.
            wait: with `part`, seconds to wait for the shards of the other processes.
            overwrite: replace a different cache at `path` instead of raising an error.
            progress: whether to show a progress bar, in a terminal or notebook.

        Returns:
            The opened cache.

        Raises:
            ValueError: for an invalid argument, outputs that are NaN or overflow `dtype`, or
                a cache at `path` with another origin; the message names the difference.
            OSError: if the disk is full. Finished shards are kept and reused.
        """
        making = Making(layers, dtype, top_k, temperature, views, augment, preprocess, seed)
        options = (batch_size, shard_size, part, overwrite, progress)
        building.build(path, teacher, data, making, *options)
        return cls(path, checksums=False, wait=wait)

    @classmethod
    def from_predictions(
        cls,
        path: str | os.PathLike,
        outputs: Structure,
        data: Data | None = None,
        *,
        source: str,
        activation: str | None = None,
        layers: Mapping[str, Any] | None = None,
        dtype: str = "float16",
        views: int = 1,
        overwrite: bool = False,
    ) -> TeacherCache:
        """Stores outputs computed elsewhere: by PyTorch, on another machine, by annotators.

        Args:
            path: a folder, created if missing.
            outputs: the final output for each example, (N, ...) or with views (N, views,
                ...); or a dict, list or tuple of such arrays.
            data: the examples that they belong to, row by row, as for `build`. None:
                examples are matched by row number, and only data of length N are accepted.
            source: description of the teacher ("all-MiniLM-L6-v2, head of 3 May"): caches
                with the same source have the same teacher.
            activation: activation of class scores: "linear" for logits, "softmax" or
                "sigmoid" for probabilities; None: inferred from the values, with a warning
                if they are probabilities.
            layers: name → (N, ...) outputs of layers, for losses on features.
            dtype: "float16" or "float32", the stored dtype of floats.
            views: number of views of each example.
            overwrite: replace a different cache at `path` instead of raising an error.

        Raises:
            ValueError: if lengths differ, a number is NaN or overflows `dtype`, or two
                examples with the same content have different outputs; the rows are named.

        Example:
            >>> import numpy as np, tempfile, tfkd
            >>> x, logits = np.eye(4, dtype="float32"), np.arange(8.0).reshape(4, 2)
            >>> cache = tfkd.TeacherCache.from_predictions(
            ...     tempfile.mkdtemp(), logits, x, source="by hand")
            >>> cache.lookup([3, 0])["final_output"].tolist()
            [[6.0, 7.0], [0.0, 1.0]]
        """
        form = (source, activation, layers or {}, dtype, views, overwrite)
        building.write_predictions(path, outputs, data, *form)
        return cls(path, checksums=False)

    def lookup(self, index: ArrayLike, view: ArrayLike = 0) -> dict[str, Any]:
        """Reads outputs, as NumPy arrays.

        Args:
            index: (B,) indices of examples in the data that the cache was made from.
            view: index of the view, a number or (B,).

        Returns:
            {"final_output": outputs in the structure of the model's (a list of these for
            several teachers), layer name: features}; logits for class scores.

        Raises:
            ValueError: for an index or view that is not in the cache.
        """
        index, view = self._check_places(index, view)
        read = {name: self._shards.gather(name, index, view) for name in self._shards.forms}
        leaves = [self.layout.final(slot.name, read) for slot in self.layout.finals]
        finals = [put(part, leaves) for part in self.layout.structure]
        features = {layer: read[slot.name] for layer, slot in self.layout.features.items()}
        return {FINAL: finals[0] if self.layout.teachers == 1 else finals, **features}

    def _check_places(self, index: Any, view: Any) -> tuple[np.ndarray, np.ndarray]:
        index = np.asarray(index)
        view = np.broadcast_to(np.asarray(view), index.shape)
        for name, value, limit, fix in (
            ("index", index, len(self), "The data has changed: build the cache again."),
            ("view", view, self.views, "Build with more views, or use fewer in training."),
        ):
            if value.dtype.kind not in "iu" or value.ndim != 1:
                raise checks.type_error(name, "integers (B,)", value)
            bad = (value < 0) | (value >= limit)
            if bad.any():
                raise checks.value_error(name, f"numbers from 0 to {limit - 1}", value[bad][0], fix)
        return index, view

    def keyed(self, data: Data) -> dict[str, Any]:
        """Data with their indices in the cache: {"inputs": x, "index": (N,) int32}.

        For `Curriculum((cache.keyed(x), y), ..., preprocess=cache.attach())` and custom
        `tf.data` pipelines; `batches` does this itself.

        Args:
            data: all or some of the examples that the cache was made from, in any order
                and any form of `build`.

        Raises:
            ValueError: for an example that is not in the cache.
        """
        x, leaves, count = read(data)
        x = example_inputs.as_tuples(x)
        if self._document.parts.get("data") is None:
            if count != len(self):
                given = f"the {len(self)} examples that the outputs were given for"
                raise checks.value_error("data", f"{given}, in that order", leaves[0])
            return {"inputs": x, "index": np.arange(count, dtype=np.int32)}
        found = places(self._shards.keys(), keys(leaves, range(count)))
        missing = np.flatnonzero(found < 0)
        if missing.size:
            when = "as they were then (before `preprocess`)"
            where = f"in {self.path}, the first is example {missing[0]}"
            why = "the cache is stale, or of other data. Build it again."
            fix = f"{missing.size} of {count} are not {where}: {why}"
            expected = f"examples that the cache was made from, {when}"
            raise checks.value_error("data", expected, leaves[0], fix)
        return {"inputs": x, "index": found.astype(np.int32)}

    def attach(
        self,
        augment: Callable[[Any, Any], Any] | None = None,
        preprocess: Callable[[Any], Any] | None = None,
    ) -> feeding.Attach:
        """A function that adds the teacher's outputs to keyed batches.

        `attach()(batch, seed=None)`: `batch` is {"inputs", "index"} and optionally "view"
        (B,); otherwise views are drawn with `seed`, which a cache with one view does not
        need. For `Dataset.map`, and as `augment` or `preprocess` of `Curriculum`.

        Args:
            augment, preprocess: the functions that the cache was built with.

        Raises:
            ValueError: for other functions than the cache was built with.
        """
        self._check_function("augment", augment)
        self._check_function("preprocess", preprocess)
        return feeding.Attach(self, augment, preprocess, self._document.settings.get("seed", 0))

    def _check_function(self, name: str, function: Any) -> None:
        known = self._document.parts.get(name)
        if known is None:
            known = fingerprints.digest(None) if "seed" in self._document.settings else None
        if known is not None and known != fingerprints.digest(function):
            fix = (
                "The teacher saw other inputs than the student would. Pass the same function, or "
                "build the cache again."
            )
            expected = f"the {name} that the cache was built with"
            raise checks.value_error(name, expected, function, fix)

    def batches(
        self,
        x: Data,
        y: Structure | None,
        batch_size: int,
        *,
        sample_weight: Structure | None = None,
        seed: int = 0,
        augment: Callable[[Any, Any], Any] | None = None,
        preprocess: Callable[[Any], Any] | None = None,
        epochs: int | None = None,
        start_step: int = 0,
        outputs: bool = True,
        input_context: tf.distribute.InputContext | None = None,
    ) -> tf.data.Dataset:
        """Shuffled training batches with the teacher's outputs, as a function of (seed, step).

        In epoch e, example i is shown in view (e + i) mod views.

        Args:
            x: all or some of the examples that the cache was made from, in any order.
            y: labels (N, ...), or a dict, list or tuple of these; None without labels.
            batch_size: global batch size: examples per step over all replicas and workers.
            sample_weight: (N,) or in the structure of y; None without weights.
            seed: determines the shuffling.
            augment, preprocess: the functions that the cache was built with.
            epochs: number of passes; None: endless.
            start_step: first step to yield, for resuming after an interruption.
            outputs: False for the same batches without the outputs, for a live teacher.
            input_context: from `strategy.distribute_datasets_from_function`: only this
                worker's share of each batch is read.

        Returns:
            A `tf.data.Dataset`, to be passed to `fit` of a Distiller with
            `steps_per_epoch = N // batch_size`.

        Raises:
            ValueError: for data that are not in the cache, other functions, or a
                `batch_size` that is not divisible by the number of workers.
        """
        values = feeding.Values(self.keyed(x), y, sample_weight)
        attach = self.attach(augment, preprocess)
        made = attach if outputs else attach.inputs
        options = (batch_size, seed, epochs, start_step, input_context)
        return feeding.batches(made, values, self.views, *options)

    def eval_batches(
        self,
        x: Data,
        y: Structure | None,
        batch_size: int,
        *,
        sample_weight: Structure | None = None,
        augment: Callable[[Any, Any], Any] | None = None,
        preprocess: Callable[[Any], Any] | None = None,
    ) -> tf.data.Dataset:
        """Batches of every example once, in order and in view 0, with the teacher's outputs.

        For `validation_data`: without the teacher's outputs `evaluate` reports only the
        student's loss and metrics.

        Args:
            x, y, batch_size, sample_weight, augment, preprocess: as in `batches`.
        """
        values = feeding.Values(self.keyed(x), y, sample_weight)
        return feeding.in_order(self.attach(augment, preprocess), values, batch_size)

    def read(self, index: np.ndarray, view: np.ndarray) -> list[np.ndarray]:
        """All stored arrays of some examples, in the order of `layout.spec()`."""
        index, view = self._check_places(index, view)
        return [self._shards.gather(name, index, view) for name in self.layout.spec()]

    def get_config(self) -> dict[str, Any]:
        """The folder, and the fingerprint that the cache must have when it is loaded."""
        return {"path": str(self.path), "fingerprint": self.fingerprint}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TeacherCache:
        """Opens the cache again.

        Raises:
            ValueError: if the folder now holds another cache.
        """
        found = cls(config["path"], checksums=False)
        if found.fingerprint != config["fingerprint"]:
            expected = "the teacher cache that the Distiller was saved with"
            raise checks.value_error("path", expected, config["path"], "It has been rebuilt since.")
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the outputs depend on."""
        return fingerprints.digest([dict(self._document.parts), dict(self._document.settings)])
