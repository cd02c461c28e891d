"""Every loss again in float64 NumPy, with plain loops, written from the papers.

Each function returns a scalar: the mean over the examples of the batch. Their
gradients are by central differences, or by hand where a formula is short.
"""

from __future__ import annotations

import itertools

import numpy as np


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def entropy(p):
    return -sum(q * np.log(q) for q in p if q > 0)


def kl(p, q):
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def rows(scores):
    """(B, ..., C) as a list of rows of C."""
    scores = np.asarray(scores, np.float64)
    return scores.reshape(-1, scores.shape[-1])


def soft_targets(teacher, student, temperature):
    losses = [
        temperature**2 * kl(softmax(t / temperature), softmax(s / temperature))
        for t, s in zip(rows(teacher), rows(student), strict=True)
    ]
    return np.mean(losses)


def soft_targets_gradient(teacher, student, temperature):
    """T (p_s − p_t) / B, by hand."""
    teacher, student = rows(teacher), rows(student)
    differences = [
        softmax(s / temperature) - softmax(t / temperature)
        for t, s in zip(teacher, student, strict=True)
    ]
    return temperature * np.stack(differences) / len(student)


def soft_crossentropy(teacher, student, temperature):
    losses = []
    for t, s in zip(rows(teacher), rows(student), strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        losses.append(-(temperature**2) * np.sum(p * np.log(q)))
    return np.mean(losses)


def bernoulli(teacher, student, temperature):
    def one(t, s):
        p, q = 1 / (1 + np.exp(-t / temperature)), 1 / (1 + np.exp(-s / temperature))
        return kl([p, 1 - p], [q, 1 - q])

    losses = [
        temperature**2 * sum(one(a, b) for a, b in zip(t, s, strict=True))
        for t, s in zip(rows(teacher), rows(student), strict=True)
    ]
    return np.mean(losses)


def decoupled(teacher, student, labels, temperature, alpha, beta):
    losses = []
    for t, s, y in zip(rows(teacher), rows(student), np.ravel(labels), strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        target = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        p_rest, q_rest = np.delete(p, y), np.delete(q, y)
        others = kl(p_rest / p_rest.sum(), q_rest / q_rest.sum())
        losses.append(temperature**2 * (alpha * target + beta * others))
    return np.mean(losses)


def z_scores(scores):
    """Algorithm 1 of Sun et al. with τ = 1, row by row."""
    z = np.asarray(scores, np.float64)
    return np.stack([(r - r.mean()) / r.std() for r in rows(z)]).reshape(z.shape)


def transformed_teacher(teacher, student, temperature, weighted=True):
    losses = []
    for t, s in zip(rows(teacher), rows(student), strict=True):
        powers = softmax(t) ** (1 / temperature)
        weight = powers.sum() if weighted else 1.0
        losses.append(weight * kl(powers / powers.sum(), softmax(s)))
    return np.mean(losses)


def pearson(teacher, student, temperature=4.0, beta=1.0, gamma=1.0, weights=None):
    """Of the examples with a weight; each list of numbers is correlated by a weighted mean."""
    p, q = (np.stack([softmax(r / temperature) for r in rows(z)]) for z in (teacher, student))
    w = np.ones(len(p)) if weights is None else np.asarray(weights, float).ravel()
    loss = beta * np.mean([w[i] * (1 - _correlation(p[i], q[i])) for i in range(len(p))])
    if np.count_nonzero(w) > 1:
        each = [1 - _correlation(p[:, c], q[:, c], w) for c in range(p.shape[1])]
        loss += gamma * np.mean(w) * np.mean(each)
    return temperature**2 * loss


def _correlation(a, b, w=None):
    covariance = np.cov(a, b, aweights=w, ddof=0)
    return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])


def squared_error(teacher, student):
    return np.mean((np.asarray(teacher, np.float64) - np.asarray(student, np.float64)) ** 2)


def cell_means(features, size):
    """(H, W, C) → (*size, C): each cell the mean over the area that it covers."""
    height, width, channels = features.shape
    out = np.zeros((*size, channels))
    for o, p in np.ndindex(*size):
        total = 0.0
        for i, j in np.ndindex(height, width):
            tall = min((o + 1) * height / size[0], i + 1) - max(o * height / size[0], i)
            wide = min((p + 1) * width / size[1], j + 1) - max(p * width / size[1], j)
            share = max(tall, 0) * max(wide, 0)
            out[o, p] += share * features[i, j]
            total += share
        out[o, p] /= total
    return out


def attention(teacher, student):
    """Of (B, H, W, C) or (B, T, C) features."""
    losses = []
    for t, s in zip(np.asarray(teacher, float), np.asarray(student, float), strict=True):
        t, s = (x[None] if x.ndim == 2 else x for x in (t, s))
        size = tuple(min(a, b) for a, b in zip(t.shape[:2], s.shape[:2], strict=True))
        maps = []
        for x in (t, s):
            energy = (cell_means(x, size) ** 2).sum(-1).ravel()
            maps.append(energy / np.linalg.norm(energy))
        losses.append(np.sum((maps[0] - maps[1]) ** 2))
    return np.mean(losses)


def huber(x):
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def relational(teacher, student, distance_weight=1.0, angle_weight=2.0, weights=None):
    teacher, student = (np.asarray(x, float).reshape(len(x), -1) for x in (teacher, student))
    count = len(teacher)
    w = np.ones(count) if weights is None else np.asarray(weights, float)
    loss = 0.0
    pairs = list(itertools.permutations(range(count), 2))
    if pairs and sum(w[i] * w[j] for i, j in pairs) > 0:
        t, s = _distances(teacher, w, pairs), _distances(student, w, pairs)
        total = sum(w[i] * w[j] * huber(s[i, j] - t[i, j]) for i, j in pairs)
        loss += distance_weight * total / len(pairs)
    triples = list(itertools.permutations(range(count), 3))
    if triples:
        total = sum(
            w[i] * w[j] * w[k] * huber(_cosine(student, i, j, k) - _cosine(teacher, i, j, k))
            for i, j, k in triples
        )
        loss += angle_weight * total / len(triples)
    return loss


def _distances(e, w, pairs):
    d = {(i, j): np.linalg.norm(e[i] - e[j]) for i, j in pairs}
    mean = sum(w[i] * w[j] * d[i, j] for i, j in pairs) / sum(w[i] * w[j] for i, j in pairs)
    return {pair: value / mean for pair, value in d.items()}


def _cosine(e, i, j, k):
    a, b = e[j] - e[i], e[k] - e[i]
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def bounded(teacher, student, y, margin=0.0, keep=None):
    """(B, D) or (B, P, D); `keep`: which predictions count."""
    keep = np.ones(np.shape(y)[:-1], bool) if keep is None else np.asarray(keep)
    losses = []
    for t, s, target, kept in zip(rows(teacher), rows(student), rows(y), keep.ravel(), strict=True):
        error, bound = np.sum((s - target) ** 2), np.sum((t - target) ** 2)
        if kept:
            losses.append(error if error + margin > bound else 0.0)
    return np.mean(losses) if losses else 0.0


def gradient(loss, student, step=1e-5):
    """Central differences of `loss` at `student`, element by element."""
    student = np.asarray(student, np.float64)
    result = np.zeros_like(student)
    for index in np.ndindex(*student.shape):
        moved = np.zeros_like(student)
        moved[index] = step
        result[index] = (loss(student + moved) - loss(student - moved)) / (2 * step)
    return result
