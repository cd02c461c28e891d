"""TensorBoard summaries of a table or a run: text, plots, and scalars for each model."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from tfkd import checks
from tfkd.report import run_metrics
from tfkd.types import Path


def write(table: Any, logdir: Path, step: int, plots: bool) -> None:
    """Implements `Table.to_tensorboard`."""
    import tensorflow as tf

    with _writing(table, "table", logdir, step, plots):
        for row in table.rows:
            for quantity, value in run_metrics.scalars(row).items():
                if value is not None:
                    tf.summary.scalar(f"{quantity}/{row.model}", value)


def write_run(report: Any, logdir: Path, step: int, plots: bool) -> None:
    """Implements `RunReport.to_tensorboard`."""
    import tensorflow as tf

    with _writing(report, "report", logdir, step, plots):
        for name, value in report.metrics().items():
            tf.summary.scalar(name, value)
        for name, points in run_metrics.by_epoch(report).items():
            for epoch, value in points:
                tf.summary.scalar(f"epochs/{name}", value, step=epoch)


@contextlib.contextmanager
def _writing(result: Any, name: str, logdir: Path, step: int, plots: bool) -> Iterator[None]:
    """Context that writes summaries at `step`, after the text and plots of a result."""
    import tensorflow as tf

    checks.instance("logdir", logdir, (str, os.PathLike), "a folder, as string or path")
    if os.path.isfile(logdir):
        raise checks.value_error("logdir", "a folder", str(logdir), "There is a file of that name.")
    step = checks.non_negative_int("step", step)
    images = {}
    if plots:
        with tempfile.TemporaryDirectory() as folder:
            for path in result.draw(folder).values():
                images[path.stem] = tf.io.decode_png(path.read_bytes(), channels=3)
    writer = tf.summary.create_file_writer(os.fspath(logdir))
    with tf.summary.record_if(True), writer.as_default(step=step):
        tf.summary.text(name, result.markdown())
        for title, image in images.items():
            tf.summary.image(f"{name}/{title}", image[None])
        yield
    writer.close()
