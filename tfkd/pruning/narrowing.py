"""Widths by layer times: the levels of groups, and the narrowing that loses least for a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfkd.pruning import fitting
from tfkd.pruning.timing import Clock

STEP = 4  # kept counts are multiples of it, where the user names no other
_NOISE = 0.005  # a width that saves no more than this share of its layers' time saves nothing
_FARTHEST = 0.5  # of its width: how far a group is narrowed in a step that saves time
_LEAST_GAIN = 1e-9  # in loss, of a change that is made at the end


def levels(size: int, round_to: int | None, min_channels: int) -> np.ndarray:
    """The numbers of units that may be removed from a group, ascending from 0.

    Kept counts are multiples of `round_to`, by default of 4 up to 32 units and of 8 above,
    and, so that few layers are measured, each about an eighth smaller than the one before.

    Example:
        >>> levels(20, None, 1).tolist()
        [0, 4, 8, 12, 16]
        >>> (128 - levels(128, None, 1)).tolist()
        [128, 112, 96, 80, 64, 56, 48, 40, 32, 24, 16, 8]
    """
    step = round_to or (STEP if size <= 32 else 2 * STEP)
    every = fitting.levels(size, step, min_channels)
    chosen = [0]
    for count in every[1:].tolist():
        kept = size - count
        last = size - chosen[-1]
        if kept <= last * 7 / 8 or last <= 8 * step or count == every[-1]:
            chosen.append(count)
    return np.array(chosen)


def narrowed(
    clock: Clock, allowed: Sequence[np.ndarray], ranked: Sequence[np.ndarray], goal: float
) -> np.ndarray:
    """Narrows groups until the layers take no longer than `goal`; returns counts (G,).

    The loss of a group is −ln of the share of its importance that stays, so that the
    narrower it is already, the more the next step costs. At the end groups are widened as
    far as the goal leaves time, also where narrowing another one makes room for it. If the
    goal can't be reached, all groups are as narrow as is allowed and saves time.
    """
    losses = [losses_of(scores) for scores in ranked]
    counts = np.zeros(len(allowed), int)
    while clock.total(counts) > goal:
        steps = [_step(clock, counts, g, level, losses[g]) for g, level in enumerate(allowed)]
        gain, group, count = max(steps, key=lambda step: (step[0], -step[1]))
        if gain <= 0:
            break
        counts[group] = count
    while (better := _better(clock, counts, allowed, losses, goal)) is not None:
        counts = better
    return counts


def losses_of(scores: np.ndarray) -> np.ndarray:
    """The loss of a group by the number of units removed, from scores in ascending order."""
    kept = np.append(np.cumsum(scores.clip(0)[::-1])[::-1], 0.0)
    return -np.log(np.maximum(kept, 1e-12) / max(kept[0], 1e-12))


def _step(
    clock: Clock, counts: np.ndarray, group: int, level: np.ndarray, losses: np.ndarray
) -> tuple[float, int, int]:
    """(time saved per loss, group, its count) of the step of a group that saves most for it.

    Kernels compute tiles of channels, so it may be one of several levels.
    """
    now, trial, removed = clock.around(group, counts), counts.copy(), int(counts[group])
    best, last = (0.0, group, removed), (len(losses) - 1 - removed) * _FARTHEST
    for count in level[level > removed].tolist():
        if len(losses) - 1 - count < last and best[0] > 0:
            break
        trial[group] = count
        saved = now - clock.around(group, trial)
        if saved > _NOISE * now:
            loss = max(losses[count] - losses[removed], 1e-12)
            best = max(best, (saved / loss, group, count), key=lambda step: step[0])
    return best


def _better(
    clock: Clock,
    counts: np.ndarray,
    allowed: Sequence[np.ndarray],
    losses: Sequence[np.ndarray],
    goal: float,
) -> np.ndarray | None:
    """Counts within the goal that lose less, by widening a group or by also narrowing one."""
    found = _wider(clock, counts, allowed, losses, goal)
    if found[0] > 0:
        return found[1]
    best: tuple[float, np.ndarray | None] = (_LEAST_GAIN, None)
    for group, level in enumerate(allowed):
        for count in level[level > counts[group]][:2].tolist():
            trial = counts.copy()
            trial[group] = count
            regained, wider = _wider(clock, trial, allowed, losses, goal)
            gain = regained - (losses[group][count] - losses[group][counts[group]])
            best = max(best, (gain, wider), key=lambda change: change[0])
    return best[1]


def _wider(
    clock: Clock,
    counts: np.ndarray,
    allowed: Sequence[np.ndarray],
    losses: Sequence[np.ndarray],
    goal: float,
) -> tuple[float, np.ndarray]:
    """(loss regained, counts) of the widening of one group within the goal that regains most."""
    total = clock.total(counts)
    most, best = max(goal, total), (0.0, counts)
    for group, level in enumerate(allowed):
        now, trial = clock.around(group, counts), counts.copy()
        for count in level[level < counts[group]].tolist():
            trial[group] = count
            if total + clock.around(group, trial) - now <= most:
                gain = float(losses[group][counts[group]] - losses[group][count])
                best = max(best, (gain, trial), key=lambda change: change[0])
                break
    return best
