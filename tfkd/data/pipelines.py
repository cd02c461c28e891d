"""How the batches of tfkd are prepared beside the training step."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# More threads than this gain nothing over a step that takes milliseconds.
_MOST = 8


def parallel() -> int:
    """Batches that are made at once: one a processor, 2 to 8."""
    return min(max(os.cpu_count() or 2, 2), _MOST)


def mapped(dataset: tf.data.Dataset, function: Callable[..., Any], ahead: int) -> tf.data.Dataset:
    """Maps a data set in order, `ahead` elements at once and ready before they are asked for.

    Without tf.data's tuning: an iterator that is given up waits for the tuner's next
    turn, which is up to a minute away (seen at the end of every second `fit`).
    """
    dataset = dataset.map(function, num_parallel_calls=ahead, deterministic=True)
    return untuned(dataset.prefetch(ahead))


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Switches tf.data's tuning off, for what comes before and for the whole iterator."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
