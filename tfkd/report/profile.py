"""Layer profile of a model: parameters, multiply-accumulates (MACs) and FLOPs.

The model is traced once for a batch of one example, and every layer call is recorded
with its shapes; nothing is executed. The rule of a layer gives the number of its output
values and the number of products (terms) summed in each; MACs are terms × outputs.

FLOPs follow the filter-pruning papers (Li et al. 2017, https://arxiv.org/abs/1608.08710),
H·W·(2·Cin·K² − 1)·Cout for a convolution: each output value takes `terms` products and
`terms − 1` sums; the bias is ignored. Batch normalization counts 0, since it is folded
into the preceding convolution for deployment. Elementwise layers and pooling count 0.

A layer whose cost is not known is shown as unknown and makes the totals unknown: it is
never counted as 0. `register` adds a rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tf_keras as keras

from tfkd.costs import trace
from tfkd.networks import layer_parts
from tfkd.networks.accept import check_model
from tfkd.results import Grid, Result

# Shape of one input, or shapes in the structure of the inputs.
Shapes = Sequence[Any] | Mapping[str, Any]
UNKNOWN = "unknown"
HEAD = ("layer", "type", "output", "calls", "params", "MACs", "FLOPs")


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """One layer of a profile.

    Attributes:
        name: path of the layer, `backbone/conv1` inside a nested model.
        kind: class name of the layer.
        output_shape: shape of its (first) output for one example, without the
            batch axis; None where it depends on the input's values.
        params: number of weights, trainable or not, except those shared with earlier layers.
        macs: multiply-accumulates for one example over all calls; None: unknown.
        flops: the papers' FLOPs for one example over all calls; None: unknown.
        calls: how often the model calls the layer.
    """

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    params: int
    macs: int | None
    flops: int | None
    calls: int = 1


@dataclasses.dataclass(frozen=True)
class Profile(Result):
    """Cost of a model for one example: one row per layer, and the totals.

    Attributes:
        model: name of the model.
        rows: a `LayerProfile` for every layer that was called, in order.
    """

    model: str
    rows: tuple[LayerProfile, ...]

    @property
    def params(self) -> int:
        """All weights, each counted once."""
        return sum(row.params for row in self.rows)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the layers whose cost is unknown."""
        return tuple(row.name for row in self.rows if row.macs is None)

    @property
    def known_macs(self) -> int:
        """Multiply-accumulates of the layers with known cost: a lower bound."""
        return sum(row.macs or 0 for row in self.rows)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates for one example; None if any layer is unknown."""
        return None if self.unknown else self.known_macs

    @property
    def flops(self) -> int | None:
        """The papers' FLOPs for one example; None if any layer is unknown."""
        return None if self.unknown else sum(row.flops or 0 for row in self.rows)

    def parts(self) -> list[Grid | str]:
        """A table of the layers and the totals, and the layers of unknown cost."""
        total = ("total", "", "", "", self.params, _known(self.macs), _known(self.flops))
        rows = [*(_values(row) for row in self.rows), total]
        parts: list[Grid | str] = [Grid(HEAD, rows, left=3, totals=1)]
        if self.unknown:
            parts.append(
                f"MACs unknown for: {', '.join(self.unknown)}; at least {self.known_macs:,} in "
                "all. Add a rule with tfkd.report.register."
            )
        return parts

    def to_dict(self) -> dict[str, Any]:
        """The layers and the totals."""
        totals = {name: getattr(self, name) for name in ("params", "macs", "flops")}
        return super().to_dict() | totals


def _known(value: int | None) -> int | str:
    return UNKNOWN if value is None else value


def _values(row: LayerProfile) -> tuple[Any, ...]:
    shape = "×".join("?" if d is None else str(d) for d in row.output_shape) or "scalar"
    costs = (row.params, _known(row.macs), _known(row.flops))
    return (row.name, row.kind, shape, row.calls, *costs)


def _rows(model: keras.Model, entries: Sequence[trace.TracedLayer]) -> Iterator[LayerProfile]:
    counted: set[int] = set()
    for entry in entries:
        mine = [w for w in layer_parts.arrays(entry.layer) if id(w) not in counted]
        counted.update(id(w) for w in mine)
        known = [p for p in entry.products if p is not None]
        sure = len(known) == len(entry.products)
        pairs = [pair for products in known for pair in products]
        macs = sum(terms * outputs for terms, outputs in pairs) if sure else None
        flops = sum((2 * terms - 1) * outputs for terms, outputs in pairs) if sure else None
        kind, params = type(entry.layer).__name__, layer_parts.count(mine)
        form = (entry.name, kind, entry.output_shape)
        yield LayerProfile(*form, params, macs, flops, len(entry.products))
    left = [w for w in layer_parts.arrays(model) if id(w) not in counted]
    if left:
        yield LayerProfile("(other weights)", "", (), layer_parts.count(left), None, None, 0)


def profile(model: keras.Model, input_shape: Shapes | None = None) -> Profile:
    """Counts the parameters, MACs and FLOPs of a built model.

    Functional, Sequential, subclassed and nested models; the layers of a nested
    model are named by path. A layer that is called twice counts its parameters
    once and its MACs twice.

    Args:
        model: a built `tf_keras` model.
        input_shape: shape of one example without the batch axis, (H, W, C); for
            several inputs a dict of shapes by input name, or a list if the model takes
            one. Needed only if the model's input shape is not fully defined.

    Returns:
        A `Profile`: `.params`, `.macs`, `.flops`, `.rows`; `print` it, `.save(folder)` it.

    Raises:
        TypeError: if `model` is not a `tf_keras` model, or is a Distiller.
        ValueError: if it is not built, or its input shape is not fully defined.

    Example:
        >>> import tf_keras as keras
        >>> from tfkd import report
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, name="conv"),
        ...     keras.layers.Flatten(name="flat"), keras.layers.Dense(10, name="dense")], "tiny")
        >>> print(report.profile(model))
        layer  type     output  calls  params   MACs  FLOPs
        -----  -------  ------  -----  ------  -----  -----
        conv   Conv2D   6×6×4       1      40  1,296  2,448
        flat   Flatten  144         1       0      0      0
        dense  Dense    10          1   1,450  1,440  2,870
        -----  -------  ------  -----  ------  -----  -----
        total                           1,490  2,736  5,318
    """
    check_model("model", model)
    return Profile(model.name, tuple(_rows(model, trace.follow(model, input_shape))))
