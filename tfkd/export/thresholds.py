"""Thresholds of exported files, and the judgement of a comparison by them.

Every output must keep to the thresholds of its errors. An output that holds class
scores must also agree with the Keras model: where the model has decided, the file must
find the same class; if it has decided fewer than half of the examples, in all of them (see
`tfkd.export.parity`). Whether an output (batch, numbers) holds class scores is settled

* by `tfkd.losses.declare_outputs`: logits and softmax are class scores, sigmoid is not;
* by its values: every row is a distribution, or the logarithms of one;
* by the loss that the model is compiled with: a categorical cross-entropy takes class
  scores, a regression loss or binary cross-entropy does not;
* by a last layer of sigmoids, or rows of length 1 (normalized embeddings): no class scores;
* by the user's thresholds: `min_agreement`, for the output by name or for all outputs.
  0 says that an output is not judged by agreement.

Otherwise it may be logits, or coordinates whose largest number means nothing. Errors
judge such an output, and an agreement below the limit is a warning. It is still an
error if the agreement is below the limit by more than 0.15: the errors of a file of
logits can all be within their limits while many answers are wrong, and an agreement
like that is rare among regressions, if only decided examples count.

`min_dependence` applies to the Keras model, without which nothing can be concluded, and to
the file: zeros for a map of few peaks are within all other limits. It applies as well to
each column (element of the last axis, as a rule) whose range is far below that of the others,
except among class scores. Errors that are a large part of such a column's own range are a warning;
`min_dependence` of 0 says that they do not matter.

An output of rank 3 or more is a map, of thousands of positions. Its maximum says little,
so that `max_error` applies to 99 % of its positions, and the mean error may not exceed
`max_error` either. Nor may the loss of its peaks, which can be fewer than 1 % of the
positions, and all there is to see.

A number of examples shows the agreement of a file only up to chance, so that an agreement
is below a limit if a file that reaches the limit would show so few with a probability of
less than 5 %.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tfkd import checks
from tfkd.export import clipped_inputs
from tfkd.quantization.lost_columns import described
from tfkd.teachers import class_scores

Changes = Mapping[str, float | Mapping[str, float]]

# Default thresholds by mode. Errors are fractions of the output's range.
THRESHOLDS: dict[str, dict[str, float]] = {
    "float32": {"max_error": 1e-4, "min_agreement": 0.99},
    "float16": {"max_error": 1e-2, "min_agreement": 0.98},
    "dynamic": {"max_error": 0.1, "min_agreement": 0.95},
    "int8": {"max_error": 0.25, "min_agreement": 0.9},
    # The Keras model rounds as the file does, except for sums halfway between two codes.
    "quantized": {"max_error": 0.15, "max_mean_error": 0.02, "min_agreement": 0.95},
}
_SHARED = {"max_mean_error": 0.05, "max_clipped": 0.05, "min_dependence": 1e-3}
# Probability below which chance does not explain an agreement.
_CHANCE = 0.05
# Peaks may be this part of their own range lower, at least: rounding may explain it.
_PEAK = 0.1
# Outputs that may not be class scores are refused this far below `min_agreement`.
_FAR = 0.15


@dataclasses.dataclass(frozen=True)
class Limits:
    """The thresholds of a file.

    Attributes:
        shared: thresholds by name, for every output.
        outputs: those that the user set for one output, by its name.
        class_scores: whether the user set `min_agreement` for all outputs.
    """

    shared: dict[str, float]
    outputs: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    class_scores: bool = False

    def of(self, output: str) -> dict[str, float]:
        """The thresholds of one output."""
        return {**self.shared, **self.outputs.get(output, {})}

    def recorded(self) -> dict[str, Any]:
        """The thresholds as they stand in a manifest."""
        return {**self.shared, **({"outputs": self.outputs} if self.outputs else {})}

    def by_agreement(self, output: str, row: Mapping[str, Any], rank: int) -> bool | None:
        """Whether an output is judged by agreement; None if it is not known what it holds."""
        if "min_agreement" in self.outputs.get(output, {}):
            return True
        if rank != 2:
            return False
        if self.class_scores:
            return True
        return {"classes": True, "values": False}.get(row["kind"])


def thresholds_for(mode: str, changes: Changes | None, outputs: Iterable[str] = ()) -> Limits:
    """Returns the thresholds of `mode`, updated by `changes`, which are checked.

    Args:
        mode: key of `THRESHOLDS`.
        changes: thresholds by name; dicts of such by the name of an output.
        outputs: names of the outputs.
    """
    limits = Limits({**_SHARED, **THRESHOLDS[mode]})
    if changes is None:
        return limits
    checks.instance("thresholds", changes, Mapping, "a dict of thresholds by name")
    known, names = list(limits.shared), list(outputs)
    shared, single = dict(limits.shared), {}
    for key, value in changes.items():
        if isinstance(value, Mapping) and (key in names or key not in known):
            checks.one_of("thresholds", key, [*names, *known])
            where = f"thresholds[{key!r}]"
            single[key] = {k: _threshold(where, k, v, known) for k, v in value.items()}
        elif key in names and key not in known:
            expected = f"a dict of thresholds for the output {key!r}"
            fix = f"For example: thresholds={{{key!r}: {{'min_agreement': 0}}}}."
            raise checks.type_error(f"thresholds[{key!r}]", expected, value, fix)
        else:
            shared[key] = _threshold("thresholds", key, value, [*known, *names])
    return Limits(shared, single, "min_agreement" in changes and "min_agreement" not in single)


def _threshold(where: str, key: str, value: Any, known: list[str]) -> float:
    checks.one_of(where, key, known)
    check = checks.fraction if key == "min_agreement" else checks.non_negative
    return check(f"{where}[{key!r}]", value)


def failures(numbers: Mapping[str, Any], limits: Limits, ranks: Mapping[str, int]) -> list[str]:
    """Lists the thresholds that are missed, one sentence each.

    Args:
        numbers: the results of `tfkd.export.parity.measure`.
        limits: the thresholds.
        ranks: rank of each output, with the batch axis.
    """
    found: list[str] = []
    for name, row in numbers["outputs"].items():
        found += _wrong_values(name, row, limits.of(name), ranks[name] > 2)
        found += [text for text, is_failure in _lost(name, row, limits) if is_failure]
        rare = _rare_agreement(name, row, limits, ranks[name])
        found += [text for text, is_failure in rare if is_failure]
    return found


def doubts(numbers: Mapping[str, Any], limits: Limits, ranks: Mapping[str, int]) -> list[str]:
    """Lists what may be wrong, one sentence each.

    These are outputs that miss `min_agreement`, if they hold class scores, `coarse`, and
    inputs of which too much is clipped.
    """
    agree = [
        text
        for name, row in numbers["outputs"].items()
        for text, is_failure in _rare_agreement(name, row, limits, ranks[name])
        if not is_failure
    ]
    clipped = clipped_inputs.doubts(numbers.get("inputs", {}))
    return [*agree, *coarse(numbers, limits), *clipped]


def coarse(numbers: Mapping[str, Any], limits: Limits) -> list[str]:
    """Lists the outputs that have columns with errors of the order of their own ranges."""
    rows = numbers["outputs"].items()
    return [t for name, row in rows for t, is_failure in _lost(name, row, limits) if not is_failure]


def _lost(name: str, row: Mapping[str, Any], limits: Limits) -> Iterator[tuple[str, bool]]:
    """Yields (sentence, whether it is a failure) on the columns that are lost in the file."""
    least = limits.of(name)["min_dependence"]
    if row["kind"] == class_scores.CLASSES or not least:
        return
    still: list[Mapping[str, Any]] = []
    others: list[Mapping[str, Any]] = []
    for column in row["lost_columns"]:
        (low, high), (first, last) = column["range"], column["range_after"]
        (still if last - first < least * (high - low) else others).append(column)
    fix = f". If it does not matter: thresholds={{{name!r}: {{'min_dependence': 0}}}}"
    for columns in (still, others):
        if columns:
            yield f"output {name!r}: {described(columns, 'the file')}{fix}", columns is still


def _wrong_values(
    name: str, row: Mapping[str, Any], limits: Mapping[str, float], is_map: bool
) -> Iterator[str]:
    """Sentences on the thresholds that the numbers of an output miss."""
    if row["dependence"] < limits["min_dependence"]:
        yield (
            f"output {name!r} hardly depends on the input (it moves by "
            f"{row['dependence']:.2g} of its range), so that nothing can be concluded; is "
            "the model trained, and are the images different?"
        )
    elif row["file_dependence"] < limits["min_dependence"]:
        yield stuck(name, row)
    if row["not_finite"]:
        yield (
            f"output {name!r} holds NaN or infinity where the Keras model's is finite "
            f"({row['not_finite']:.2%} of its numbers)"
        )
    key, mean = "max_error", limits["max_mean_error"]
    if is_map:  # While no position was beyond `max_error`, neither was the mean.
        key, mean = "p99_error", min(mean, limits["max_error"])
    tests = [
        (key, limits["max_error"], "; more than 1 % of its positions are" if is_map else ""),
        ("mean_error", mean, ""),
        ("clipped", limits["max_clipped"], ""),
    ]
    for key, limit, note in tests:
        if row[key] > limit:
            yield f"output {name!r}: {key} {row[key]:.3g} is above {limit:g}{note}"
    peak, limit = row["peak_error"], max(limits["max_error"], _PEAK)
    if peak is not None and peak > limit:
        yield (
            f"output {name!r}: peak_error {peak:.3g} is above {limit:g}: the largest or smallest "
            "values of its examples are off by that part of the range in the file, on average"
        )


def stuck(name: str, row: Mapping[str, Any]) -> str:
    """A sentence on an output that depends on the input in the model, but not in the file."""
    low, high = row["file_range"]
    if low == high:
        how = f"is {low:g} everywhere and for every input in the file"
    elif not row["file_dependence"]:
        how = "is the same for every input in the file"
    else:
        how = "hardly depends on the input in the file"
    low, high = row["range"]
    return (
        f"output {name!r} {how}, while the Keras model's depends on it ({low:.4g} to {high:.4g}): "
        "a range or a constant on the way to it was lost, so that it carries no information"
    )


def _rare_agreement(
    name: str, row: Mapping[str, Any], limits: Limits, rank: int
) -> Iterator[tuple[str, bool]]:
    """Yields (sentence, whether it is a failure) if an output agrees too rarely."""
    judged = limits.by_agreement(name, row, rank)
    if row["decided_agreement"] is None or judged is False:
        return
    least, count = limits.of(name)["min_agreement"], row["decided"]
    agree = round(row["decided_agreement"] * count)
    places, few = "examples" if rank == 2 else "positions", 2 * count < row["positions"]
    which = f"decided {places}"
    note = f"argmax_agreement of all {places}: {row['argmax_agreement']:.3g}"
    if few and agree >= least_by_chance(count, least):
        note = f"the model has decided {count} of them, too few to judge by these alone"
        count, which = row["positions"], places
        agree = round(row["argmax_agreement"] * count)
    expected = least_by_chance(count, least)
    if agree >= expected:
        return
    text = (
        f"output {name!r}: {agree} of {count} {which} agree; at least {100 * least:g} % "
        f"are wanted; by chance {count} {places} may show down to {expected} ({note})"
    )
    far = which != places and agree < least_by_chance(count, max(least - _FAR, 0.0))
    if judged:
        yield text, True
    elif far:
        fix = f"If it does not hold class scores: thresholds={{{name!r}: {{'min_agreement': 0}}}}"
        yield f"{text}. {fix}", True
    else:
        fix = (
            "It was judged by its errors alone, as nothing shows that it holds class scores. "
            f"thresholds={{{name!r}: {{'min_agreement': {least:g}}}}} says that it does, and 0 "
            "that it does not"
        )
        yield f"{text}. {fix}", False


def least_by_chance(count: int, share: float) -> int:
    """The smallest number of successes in `count` trials that chance still explains.

    It is the smallest k for which P(X ≤ k) is at least 5 %, where X is binomially
    distributed with probability `share`.
    """
    if share >= 1:
        return count
    # The median is at most the mean rounded up, so that the search may end there.
    ks = range(math.ceil(count * share))
    return bisect.bisect_left(ks, _CHANCE, key=lambda k: _tail(k, count, share))


def _tail(k: int, n: int, p: float) -> float:
    """P(X ≤ k) for X binomially distributed, with k below n · p."""
    log_ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    term = math.exp(log_ways + k * math.log(p) + (n - k) * math.log1p(-p))
    total, odds = 0.0, (1 - p) / p
    for i in range(k, -1, -1):
        total += term
        if term <= 1e-12 * total:  # Terms decrease from the mean downwards.
            break
        term *= i / (n - i + 1) * odds  # P(X = i − 1) from P(X = i)
    return total
