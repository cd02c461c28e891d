"""Detection again in float64 NumPy, with plain loops, written from the papers.

Boxes are (x1, y1, x2, y2), priors (cx, cy, w, h). Losses take what one batch has and
return the value and, by hand, its gradients.
"""

from __future__ import annotations

import math

import numpy as np

VARIANCES = (0.1, 0.1, 0.2, 0.2)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def corners(prior):
    cx, cy, w, h = (float(v) for v in prior)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def encode(box, prior, variances=VARIANCES):
    (x1, y1, x2, y2), (cx, cy, w, h) = box, prior
    w_box, h_box = max(x2 - x1, 1e-6), max(y2 - y1, 1e-6)
    found = [
        ((x1 + x2) / 2 - cx) / w,
        ((y1 + y2) / 2 - cy) / h,
        math.log(w_box / w),
        math.log(h_box / h),
    ]
    return [f / v for f, v in zip(found, variances, strict=True)]


def decode(offset, prior, variances=VARIANCES):
    dx, dy, dw, dh = (o * v for o, v in zip(offset, variances, strict=True))
    cx, cy = dx * prior[2] + prior[0], dy * prior[3] + prior[1]
    w, h = (math.exp(min(d, math.log(62.5))) * p for d, p in zip((dw, dh), prior[2:], strict=True))
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def down_the_list(overlap):
    """The object given to each prior: the sorted list of all pairs, from the top."""
    pairs = [
        (-value, g, p) for g, row in enumerate(overlap) for p, value in enumerate(row) if value > 0
    ]
    given, done = [-1] * len(overlap[0]), set()
    for _, g, p in sorted(pairs):
        if g not in done and given[p] < 0:
            given[p] = g
            done.add(g)
    return given


def match(boxes, classes, priors, threshold=0.5, ignore_from=None, variances=VARIANCES):
    """(labels (P,), offsets (P, 4)) of one image."""
    labels, offsets = np.zeros(len(priors), int), np.zeros((len(priors), 4))
    if any(c == -2 for c in classes):
        return labels - 1, offsets
    pairs = [(b, c) for b, c in zip(boxes, classes, strict=True) if b[2] > b[0] and b[3] > b[1]]
    for box in [b for b, c in pairs if c == -3]:
        shared = [iou(box, corners(prior)) for prior in priors]
        best = max(shared)
        for p, value in enumerate(shared):
            if value >= (ignore_from or threshold) or value == best > 0:
                labels[p] = -1
    real = [(b, c) for b, c in pairs if c >= 0]
    if not real:
        return labels, offsets
    overlap = [[iou(box, corners(prior)) for prior in priors] for box, _ in real]
    given = down_the_list(overlap)
    for p, prior in enumerate(priors):
        column = [row[p] for row in overlap]
        best = int(np.argmax(column))
        if given[p] < 0 and column[best] >= threshold:
            given[p] = best
        if given[p] >= 0:
            box, c = real[given[p]]
            labels[p], offsets[p] = c + 1, encode(box, prior, variances)
        elif ignore_from is not None and column[best] >= ignore_from:
            labels[p] = -1
    return labels, offsets


def hardest(losses, labels, ratio=3.0, least=0):
    """bool (P,): the negatives of one image."""
    background = [p for p in range(len(labels)) if labels[p] == 0]
    order = sorted(background, key=lambda p: (-losses[p], p))
    wanted = len(background)
    if ratio is not None:
        wanted = max(math.floor(ratio * sum(label > 0 for label in labels)), least)
    found = np.zeros(len(labels), bool)
    found[order[:wanted]] = True
    return found


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def log_sigmoid(z):
    return -np.logaddexp(0.0, -np.asarray(z, np.float64))


def softmax_entropy(label, z):
    """Cross-entropy of one prior, and its gradient."""
    log_p, truth = log_softmax(z), np.eye(len(z))[label]
    return -log_p[label], np.exp(log_p) - truth


def sigmoid_entropy(label, z, gamma=0.0, alpha=None):
    """(Focal) cross-entropy of one prior: Lin et al. 2017, appendices A and B."""
    value, gradient = 0.0, np.zeros(len(z))
    for c, score in enumerate(z):
        sign = 1.0 if c + 1 == label else -1.0
        log_p = log_sigmoid(sign * score)
        p = np.exp(log_p)
        weight = 1.0 if alpha is None else alpha if sign > 0 else 1 - alpha
        value -= weight * (1 - p) ** gamma * log_p
        gradient[c] = weight * sign * (1 - p) ** gamma * (gamma * p * log_p + p - 1)
    return value, gradient


def smooth_l1(s, y):
    value = 0.0
    for a, b in zip(s, y, strict=True):
        d = abs(a - b)
        value += 0.5 * d * d if d < 1 else d - 0.5
    return value, np.clip(np.asarray(s) - y, -1.0, 1.0)


def bounded(s, t, y, margin):
    mine = sum((a - b) ** 2 for a, b in zip(s, y, strict=True))
    theirs = sum((a - b) ** 2 for a, b in zip(t, y, strict=True))
    if mine + margin > theirs:
        return mine, 2 * (np.asarray(s) - y)
    return 0.0, np.zeros(4)


def soft_softmax(t, s, temperature=1.0, background=1.0, foreground=1.0):
    w = np.array([background] + [foreground] * (len(t) - 1))
    log_t, log_s = log_softmax(t / temperature), log_softmax(s / temperature)
    p, q = np.exp(log_t), np.exp(log_s)
    value = temperature**2 * sum(w * p * (log_t - log_s))
    return value, temperature * (sum(w * p) * q - w * p)


def soft_sigmoid(t, s, temperature=1.0, background=1.0, foreground=1.0):
    value, gradient = 0.0, []
    for a, b in zip(t / temperature, s / temperature, strict=True):
        p, q = np.exp(log_sigmoid(a)), np.exp(log_sigmoid(b))
        present = p * (log_sigmoid(a) - log_sigmoid(b))
        absent = (1 - p) * (log_sigmoid(-a) - log_sigmoid(-b))
        value += temperature**2 * (foreground * present + background * absent)
        gradient.append(temperature * (background * (1 - p) * q - foreground * p * (1 - q)))
    return value, np.array(gradient)


class Batch:
    """What counts in one batch, by loops.

    Args:
        y: {"boxes": (B, M, 4), "classes": (B, M)}.
        student: {"boxes": (B, P, 4), "classes": (B, P, K)}.
        teacher: the same, or None.
    """

    def __init__(self, y, student, priors, teacher=None, scores="softmax", ratio=3.0, least=0,
                 **matching):  # fmt: skip
        pairs = zip(y["boxes"], y["classes"], strict=True)
        both = [match(boxes, classes, priors, **matching) for boxes, classes in pairs]
        self.labels = np.stack([labels for labels, _ in both])
        self.offsets = np.stack([offsets for _, offsets in both])
        self.entropy = softmax_entropy if scores == "softmax" else sigmoid_entropy
        self.divergence = soft_softmax if scores == "softmax" else soft_sigmoid
        self.student = {name: np.asarray(v, np.float64) for name, v in student.items()}
        self.teacher = teacher and {name: np.asarray(v, np.float64) for name, v in teacher.items()}
        self.positive = self.labels > 0
        self.count = max(1, self.positive.sum())
        losses = self.each("classes", self.labels >= 0, lambda i, p, z: self.entropy(
            self.labels[i, p], z))[0]  # fmt: skip
        self.negative = np.stack(
            [hardest(*pair, ratio, least) for pair in zip(losses, self.labels, strict=True)]
        )
        self.selected = self.positive | self.negative

    def each(self, output, where, one):
        """Values (B, P) and gradients of `one(image, prior, row)` at the chosen priors."""
        rows = self.student[output]
        values, gradients = np.zeros(rows.shape[:2]), np.zeros(rows.shape)
        for i, p in np.argwhere(where):
            values[i, p], gradients[i, p] = one(i, p, rows[i, p])
        return values, gradients

    def confidence(self, **focal):
        return self.each(
            "classes", self.selected, lambda i, p, z: self.entropy(self.labels[i, p], z, **focal)
        )

    def localization(self):
        return self.each("boxes", self.positive, lambda i, p, s: smooth_l1(s, self.offsets[i, p]))

    def bounded(self, margin=0.0):
        return self.each(
            "boxes",
            self.positive,
            lambda i, p, s: bounded(s, self.teacher["boxes"][i, p], self.offsets[i, p], margin),
        )

    def soft(self, *args):
        return self.each(
            "classes",
            self.selected,
            lambda i, p, z: self.divergence(self.teacher["classes"][i, p], z, *args),
        )

    def mean(self, pair, weights=None):
        """Sum over priors / N, with a weight for each image."""
        values = pair[0]
        weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
        return float((values * weights[:, None]).sum() / self.count)


def total(weights, batch, temperature, background, margin=0.0, images=None):
    """Σ wᵢ · termᵢ of (soft, confidence, bounded, localization), and the four terms."""
    parts = [
        batch.soft(temperature, background),
        batch.confidence(),
        batch.bounded(margin),
        batch.localization(),
    ]
    values = [batch.mean(part, images) for part in parts]
    return sum(w * v for w, v in zip(weights, values, strict=True)), values
