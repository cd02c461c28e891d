"""Sixty faults for `planted_faults.py`, one a file: (name, text, text with the fault).

Each changes a result that a user sees. A text is found by its content, wherever its file
is moved to; so it has to occur once in the whole of tfkd/. When code with one of these
texts is rewritten, write the same fault into the new code.
"""

FAULTS = (
    (
        "checksum-not-compared",
        'if digest != manifest["sha256"]:',
        'if len(digest) != len(manifest["sha256"]):',
    ),
    ("share-of-one-refused", "if not 0 <= value <= 1:", "if not 0 <= value < 1:"),
    (
        "last-part-not-in-fingerprint",
        "for start in range(0, shape[0], rows):",
        "for start in range(0, max(1, shape[0] - rows), rows):",
    ),
    (
        "norm-folded-into-shared-layer",
        "len(level.calls_of(call.name)) == 1 for call in (maker, norm)",
        "len(level.calls_of(call.name)) >= 1 for call in (maker, norm)",
    ),
    (
        "idf-weights-not-copied",
        'if layer.output_mode == "tf_idf":',
        'if layer.output_mode == "tf-idf":',
    ),
    (
        "replicas-averaged",
        "all_reduce(tf.distribute.ReduceOp.SUM, value)",
        "all_reduce(tf.distribute.ReduceOp.MEAN, value)",
    ),
    (
        "cosine-upside-down",
        "(0.5 - 0.5 * ops.cos(math.pi * progress))",
        "(0.5 + 0.5 * ops.cos(math.pi * progress))",
    ),
    (
        "progress-over-whole-time",
        "(np.clip(step, begin, end) - begin) / (end - begin)",
        "(np.clip(step, begin, end) - begin) / end",
    ),
    (
        "variances-multiplied",
        "_reordered(offsets, order) / tf.constant(variances, offsets.dtype)",
        "_reordered(offsets, order) * tf.constant(variances, offsets.dtype)",
    ),
    ("map75-at-070", "map75=_mean(whole[5])", "map75=_mean(whole[4])"),
    ("class-labels-not-shifted", "batch_dims=1) + 1, BACKGROUND)", "batch_dims=1), BACKGROUND)"),
    (
        "prior-and-class-swapped",
        "where // number, batch_dims=1), where % number",
        "where % number, batch_dims=1), where // number",
    ),
    (
        "background-bias-without-classes",
        "math.log(background * num_classes / (1 - background))",
        "math.log(background / (1 - background))",
    ),
    (
        "padding-looked-for-over-the-batch",
        "tf.reduce_any(used, axis=1, keepdims=True)",
        "tf.reduce_any(used, axis=0, keepdims=True)",
    ),
    (
        "shift-never-to-the-end",
        "seed, maxval=end, dtype=tf.int32",
        "seed, maxval=end - 1, dtype=tf.int32",
    ),
    (
        "mirrored-boxes-with-wrong-sign",
        "axis.scale + axis.offset, axis.offset)",
        "axis.scale - axis.offset, axis.offset)",
    ),
    (
        "coco-sides-taken-for-corners",
        "return x, y, x + width, y + height",
        "return x, y, width, height",
    ),
    (
        "test-images-from-training",
        "test = len(files) + np.arange(len(test_files))",
        "test = np.arange(len(test_files))",
    ),
    (
        "line-counted-from-zero",
        r'content.count("\n", 0, fault) + 1 if fault >= 0 else 0',
        r'content.count("\n", 0, fault) if fault >= 0 else 0',
    ),
    (
        "temperature-not-squared",
        "temperature * temperature * values, mask_of(student)",
        "temperature * values, mask_of(student)",
    ),
    (
        "target-logit-with-wrong-sign",
        "target - tf.reduce_logsumexp(rest, -1, keepdims=True)",
        "target + tf.reduce_logsumexp(rest, -1, keepdims=True)",
    ),
    (
        "attention-map-over-l1-norm",
        "tf.reduce_sum(tf.square(energy), -1, keepdims=True) + 1e-20",
        "tf.reduce_sum(energy, -1, keepdims=True) + 1e-20",
    ),
    ("huber-without-half", "near * (size - 0.5 * near)", "near * (size - near)"),
    (
        "resizing-not-normalized",
        "np.maximum(high - low, 0.0) * then / now",
        "np.maximum(high - low, 0.0)",
    ),
    ("far-corner-on-the-near-side", "points + distances[..., 2:]", "points - distances[..., 2:]"),
    (
        "fewest-negatives-as-most",
        "tf.maximum(tf.cast(tf.floor(ratio * count), tf.int32), min_negatives)",
        "tf.minimum(tf.cast(tf.floor(ratio * count), tf.int32), min_negatives)",
    ),
    (
        "rest-without-temperature",
        "temperature * tf.reduce_logsumexp(others, -1, keepdims=True)",
        "tf.reduce_logsumexp(others, -1, keepdims=True)",
    ),
    (
        "teachers-added-not-averaged",
        "tf.add_n([_float(e) for e in z]) / len(z)",
        "tf.add_n([_float(e) for e in z])",
    ),
    (
        "every-view-stored-as-first",
        "arrays[name][at : at + len(part), view]",
        "arrays[name][at : at + len(part), 0]",
    ),
    ("same-view-in-every-epoch", '(keyed["index"] + epoch) % views', 'keyed["index"] % views'),
    (
        "distillation-without-its-weight",
        "weight * student_loss + (1.0 - weight) * distillation_loss",
        "weight * student_loss + distillation_loss",
    ),
    ("mean-over-one-replica", "replicas.global_sum(n)) for s, n in sums", "n) for s, n in sums"),
    (
        "margin-with-wrong-sign",
        "tf.reduce_max(others, -1) - tf.gather(p, labels, batch_dims=1)",
        "tf.gather(p, labels, batch_dims=1) - tf.reduce_max(others, -1)",
    ),
    (
        "classes-ranked-unequally",
        "(np.arange(len(members)) + 0.5) / len(members)",
        "np.arange(len(members)) + 0.5",
    ),
    (
        "stairs-without-steps",
        "part = ops.progress(step - step % self.every, 0, self.last_step)",
        "part = ops.progress(step, 0, self.last_step)",
    ),
    (
        "attention-counted-for-one-head",
        "rest * heads * targets * sources",
        "rest * targets * sources",
    ),
    ("distance-with-wrong-sign", "-2 * centred.T", "2 * centred.T"),
    (
        "begin-of-decay-forgotten",
        "step - (step - self.begin_step) % self.frequency",
        "step - step % self.frequency",
    ),
    (
        "fixed-macs-dropped",
        "self._fixed_macs + int((self._positions * products).sum())",
        "int((self._positions * products).sum())",
    ),
    (
        "depthwise-channels-tiled",
        "np.repeat(call.at(x, axis), filters // groups)",
        "np.tile(call.at(x, axis), filters // groups)",
    ),
    ("axes-counted-behind", "sum(a < x.axis for a in axes)", "sum(a > x.axis for a in axes)"),
    (
        "momentum-inverted",
        "layer.momentum = count / (count + 1)",
        "layer.momentum = 1 / (count + 1)",
    ),
    (
        "similar-blocks-kept",
        "float(1.0 - total / max(count, 1.0))",
        "float(total / max(count, 1.0))",
    ),
    (
        "percentile-of-upper-end-for-lower",
        "min(at(1 - percentile / 100), 0.0)",
        "min(at(percentile / 100), 0.0)",
    ),
    (
        "folded-mean-not-scaled",
        "beta - float64_array(norm.moving_mean) * scale",
        "beta - float64_array(norm.moving_mean)",
    ),
    ("range-moves-away", "high + step * (batch_high - high)", "high + step * (high - batch_high)"),
    (
        "attention-without-square-root",
        "1.0 / math.sqrt(float(query.shape[-1]))",
        "1.0 / float(query.shape[-1])",
    ),
    (
        "sum-in-range-of-mean",
        "times = (out[0] * count, out[1] * count)",
        "times = (out[0], out[1])",
    ),
    (
        "nothing-is-decided",
        "best[..., 1] - best[..., 0] > 2 * error",
        "best[..., 0] - best[..., 1] > 2 * error",
    ),
    (
        "mask-with-wrong-sign",
        "tf.cast(some, scores.dtype) - offset",
        "tf.cast(some, scores.dtype) + offset",
    ),
    (
        "channel-axis-of-dense-and-conv-swapped",
        'want = 0 if node.op_type == "Conv" else 1',
        'want = 1 if node.op_type == "Conv" else 0',
    ),
    (
        "boxes-of-twice-the-size",
        "MAX_LOG_SIZE)) * priors[..., 2:] / 2",
        "MAX_LOG_SIZE)) * priors[..., 2:]",
    ),
    (
        "rows-cut-from-the-wrong-end",
        "[result[: end - start] for result in results]",
        "[result[start:end] for result in results]",
    ),
    (
        "cache-holds-one-less",
        "while len(self._kept) > self._max:",
        "while len(self._kept) >= self._max:",
    ),
    (
        "decayed-again-from-one",
        "rate / self._rate if self._rate else 0.0",
        "rate if self._rate else 0.0",
    ),
    (
        "refreshed-an-epoch-early",
        "(epoch + 1) % self.refresh_every == 0",
        "epoch % self.refresh_every == 0",
    ),
    (
        "stage-starts-at-step-zero",
        "return schedules.value_at(value, np.maximum(step - begin, 0))",
        "return schedules.value_at(value, step)",
    ),
    (
        "axes-moved-backwards",
        "{to % rank: at % rank for at, to in pairs}",
        "{at % rank: to % rank for at, to in pairs}",
    ),
    ("deviation-of-population", "array.std(ddof=1)", "array.std()"),
    (
        "precision-divided-by-one-less",
        "hits[ends] / (ends + 1)",
        "hits[ends] / np.maximum(ends, 1)",
    ),
)
