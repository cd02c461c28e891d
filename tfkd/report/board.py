"""TensorBoard summaries of a table: text, plots, and scalars for each model."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from tfkd import checks
from tfkd.report.measures import MEASURES
from tfkd.types import Path


def write(table: Any, logdir: Path, step: int, plots: bool) -> None:
    """Implements `Table.to_tensorboard`."""
    import tensorflow as tf

    checks.instance("logdir", logdir, (str, os.PathLike), "a folder, as string or path")
    if os.path.isfile(logdir):
        raise checks.value_error("logdir", "a folder", str(logdir), "There is a file of that name.")
    step = checks.non_negative_int("step", step)
    images = {}
    if plots:
        with tempfile.TemporaryDirectory() as folder:
            for path in table.draw(folder).values():
                images[path.stem] = tf.io.decode_png(path.read_bytes(), channels=3)
    writer = tf.summary.create_file_writer(os.fspath(logdir))
    with tf.summary.record_if(True), writer.as_default(step=step):
        tf.summary.text("table", table.markdown())
        for name, image in images.items():
            tf.summary.image(f"table/{name}", image[None])
        for row in table.rows:
            for quantity, value in _scalars(row).items():
                if value is not None:
                    tf.summary.scalar(f"{quantity}/{row.model}", value)
    writer.close()


def _scalars(row: Any) -> dict[str, float | None]:
    """The scalars of a row, by their group in TensorBoard."""
    times = row.latency
    scores = {measure.key: getattr(row, measure.key) for measure in MEASURES}
    return {
        **{key: stats and stats.mean for key, stats in scores.items()},
        "p50_ms": times and times.p50,
        "p99_ms": times and times.p99,
        "examples_per_second": row.throughput,
        "size_bytes": row.size,
    }
