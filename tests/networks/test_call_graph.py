"""The graph of a model's calls, by hand for a few small models."""

from __future__ import annotations

import tf_keras as keras

from tfkd.networks.call_graph import CallGraph, Spec

layers = keras.layers


def residual():
    """x → a → a → +x, and a nested model of one layer behind it."""
    x = keras.Input((4,), name="x")
    dense = layers.Dense(4, name="a")
    inner = keras.Sequential([keras.Input((4,), name="inside"), layers.ReLU(name="r")], name="n")
    total = layers.Add(name="sum")([dense(dense(x)), x])
    return keras.Model(x, {"y": inner(total), "first": total})


def test_calls_and_who_reads_them():
    graph = CallGraph(residual())
    assert list(graph.calls) == [("x", 0), ("a", 0), ("a", 1), ("sum", 0), ("n", 1)]
    assert graph.calls["sum", 0].inputs == (("a", 1, 0), ("x", 0, 0))
    assert graph.readers["x", 0, 0] == [("a", 0), ("sum", 0)]
    assert graph.outputs == (("sum", 0, 0), ("n", 1, 0))  # in the order of the names
    assert graph.spec(("sum", 0, 0)) == Spec((None, 4), "float32")
    assert [call.key for call in graph.calls_of("a")] == [("a", 0), ("a", 1)]
    assert [call.name for call in graph.calls.values() if call.is_input] == ["x"]


def test_calls_in_other_models_are_not_counted():
    x = keras.Input((4,), name="x")
    dense = layers.Dense(4, name="a")
    keras.Model(x, dense(x))
    y = keras.Input((4,), name="y")
    assert list(CallGraph(keras.Model(y, dense(y))).calls) == [("y", 0), ("a", 0)]


def test_the_only_reader_of_a_tensor():
    graph = CallGraph(residual())
    assert graph.only_reader(("a", 0, 0)) is graph.calls["a", 1]
    assert graph.only_reader(("x", 0, 0)) is None  # two read it
    assert graph.only_reader(("sum", 0, 0)) is None  # it is returned, too
    x = keras.Input((4,), name="x")
    squared = CallGraph(keras.Model(x, layers.Multiply(name="m")([x, x])))
    assert squared.only_reader(("x", 0, 0)) is None  # two arguments of one call


def test_what_depends_on_what():
    graph = CallGraph(residual())
    assert graph.after(("a", 0, 0)) == {("a", 1), ("sum", 0), ("n", 1)}
    assert graph.upto(("a", 1)) == {("x", 0), ("a", 0), ("a", 1)}
    moved = {("sum", 0, 0): ("x", 0, 0)}
    assert graph.alive(moved, {("sum", 0), ("a", 0), ("a", 1)}) == {("x", 0), ("n", 1)}


def test_nested_models_have_graphs_of_their_own():
    graph = CallGraph(residual())
    assert list(graph.levels()) == ["", "n/"]
    assert list(graph.levels()["n/"].calls) == [("inside", 0), ("r", 0)]
    assert graph.nested["n"].model is graph.layers["n"]


def test_a_model_that_adds_to_its_graph_is_a_layer_like_any_other():
    class Doubled(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2.0 * super().call(inputs, training=training, mask=mask)

    x = keras.Input((4,))
    inner = Doubled(x, layers.ReLU()(x), name="inner")
    y = keras.Input((4,))
    assert CallGraph(keras.Model(y, inner(y))).nested == {}


def test_values_follow_the_calls():
    graph = CallGraph(residual())
    seen = []

    def visit(call, args, kwargs):
        seen.append((*call.key, args))
        return sum(args[0]) if call.name == "sum" else 10 * args[0]

    assert graph.follow([1], visit) == [101, 1010]
    assert seen == [("a", 0, (1,)), ("a", 1, (10,)), ("sum", 0, ([100, 1],)), ("n", 1, (101,))]
