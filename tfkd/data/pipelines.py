"""tf.data options of tfkd's input pipelines: parallel calls, prefetching, no autotuning."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# More threads do not help where a training step takes milliseconds.
_MOST = 8


def parallel() -> int:
    """Number of batches prepared in parallel: one per processor, from 2 to 8."""
    return min(max(os.cpu_count() or 2, 2), _MOST)


def mapped(dataset: tf.data.Dataset, function: Callable[..., Any], ahead: int) -> tf.data.Dataset:
    """Maps a data set in order, with `ahead` parallel calls and as many prefetched elements.

    Autotuning is off: destroying an iterator waits for the tuner's next cycle, which
    delayed the end of every second `fit` by up to a minute.
    """
    dataset = dataset.map(function, num_parallel_calls=ahead, deterministic=True)
    return untuned(dataset.prefetch(ahead))


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Disables tf.data's autotuning of the whole iterator."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
