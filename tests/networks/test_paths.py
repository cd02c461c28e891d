"""One matcher of layers: every argument that names layers reads an entry in the same way."""

from __future__ import annotations

import functools

import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

import tfkd
from tfkd import pruning
from tfkd.networks import paths
from tfkd.progressive.freezing import freeze
from tfkd.pruning.ignoring import ignored_groups
from tfkd.quantization.flattening.flatten import flatten
from tfkd.quantization.quantizing import _skipped

HIDDEN = (
    "stem",
    "stage1/conv1",
    "stage1/conv2",
    "stage2/inner/conv1",
    "stage2/inner/deep",
    "stage2/conv10",
)


def dense(name, size=6):
    return keras.layers.Dense(size, "relu", name=name)


def chain(name, *layers):
    x = y = keras.Input((6,), name=f"{name}_in")
    for layer in layers:
        y = layer(y)
    return keras.Model(x, y, name=name)


@functools.cache
def model():
    inner = chain("inner", dense("conv1"), dense("deep"))
    first = chain("stage1", dense("conv1"), dense("conv2"))
    second = chain("stage2", inner, dense("conv10"))
    return chain("net", dense("stem"), first, second, dense("logits"))


@functools.cache
def layers():
    return dict(paths.walk(model()))


@functools.cache
def graph():
    return pruning.analyse(model())


@functools.cache
def flat():
    return flatten(model())


def glob(pattern, text):
    """Whether a text fits a pattern of `*` and `?`, written out."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(glob(pattern[1:], text[i:]) for i in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and glob(pattern[1:], text[1:])


def expected(entry):
    """Paths of hidden layers that an entry names: one that it, or a model around it, goes by."""
    if not isinstance(entry, str):
        own = [path for path, layer in layers().items() if layer is entry]
        return {h for h in HIDDEN if any(h == path or h.startswith(f"{path}/") for path in own)}
    found = set()
    for path in HIDDEN:
        names = path.split("/")
        spans = [(i, j) for j in range(1, len(names) + 1) for i in range(j)]
        if any(glob(entry, "/".join(names[i:j])) for i, j in spans):
            found.add(path)
    return found


def by_ignore(entries):
    return set(ignored_groups(graph(), entries))


def by_skip(entries):
    names = _skipped(entries, model(), flat())
    return {flat().origins.get(name, name) for name in names} & set(HIDDEN)


def by_freeze(entries):
    trainable = dict.fromkeys(dict(paths.leaves(model())), True)
    try:
        freeze(model(), entries, trainable)
    except ValueError as error:
        if "something left to train" not in str(error):
            raise
    found = {path for path in HIDDEN if not layers()[path].trainable}
    freeze(model(), (), trainable)
    return found


EVERY = [by_ignore, by_skip, by_freeze]
PARTS = ["stem", "stage1", "stage2", "inner", "conv1", "conv10", "conv", "age", "1", "*", "?", "/"]
ENTRY = st.one_of(
    st.sampled_from(HIDDEN),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join),
    st.sampled_from([*HIDDEN, "stage1", "stage2", "stage2/inner"]).map(lambda path: layers()[path]),
)


def answer(read, entries):
    """What an argument makes of entries; None where one names nothing."""
    try:
        return read(entries)
    except ValueError as error:
        assert "received" in str(error) and len(str(error)) < 700
        return None


@given(st.lists(ENTRY, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_every_argument_reads_entries_alike(entries):
    known = [expected(entry) for entry in entries]
    wanted = set().union(*known)
    for read in EVERY:
        found = answer(read, entries)
        # An entry may also name a layer that is not hidden, which `ignore` need not know.
        if all(known) or found is not None:
            assert found == wanted, (read, entries)
        assert answer(read, tuple(entries)) == found
        if len(entries) == 1:
            assert answer(read, entries[0]) == found
        if all(isinstance(entry, str) for entry in entries):
            assert answer(read, set(entries)) == found


@given(ENTRY)
@settings(max_examples=60, deadline=None)
def test_one_layer_is_found_by_what_names_it_alone(entry):
    named = entry if isinstance(entry, str) else entry.name
    hits = [path for path in layers() if expected_of(path, named)]
    if named in layers():
        assert paths.find_layer(model(), named, "teacher") is layers()[named]
    elif len(hits) == 1:
        assert paths.find_layer(model(), named, "teacher") is layers()[hits[0]]
    else:
        with pytest.raises(ValueError, match="teacher_layer_name"):
            paths.find_layer(model(), named, "teacher")


def expected_of(path, named):
    names = path.split("/")
    return any(glob(named, "/".join(names[start:])) for start in range(len(names)))


@pytest.mark.parametrize("read", EVERY)
def test_by_hand(read):
    assert read("conv1") == {"stage1/conv1", "stage2/inner/conv1"}
    assert read("stage1*") == {"stage1/conv1", "stage1/conv2"}
    assert read("inner/conv1") == {"stage2/inner/conv1"}
    assert read("inner") == {"stage2/inner/conv1", "stage2/inner/deep"}
    assert read("[d-f]eep") == {"stage2/inner/deep"}
    assert read(["s*m", "conv10"]) == {"stem", "stage2/conv10"}
    assert read(layers()["stage2/inner"]) == {"stage2/inner/conv1", "stage2/inner/deep"}
    assert read([layers()["stem"], "conv2"]) == {"stem", "stage1/conv2"}
    assert read("logits") == read(()) == set()
    with pytest.raises(ValueError, match="Did you mean 'stem'"):
        read("stam")
    with pytest.raises(ValueError, match="received the layer 'elsewhere', which is not one of"):
        read(dense("elsewhere"))
    for wrong in (3, [3], None, b"stem", {"stem": 1}, True, [None]):
        with pytest.raises(TypeError, match=r"expected names of layers.* received"):
            read(wrong)


def test_public_arguments_take_the_same_forms():
    for given_ in ("logits", ["logits"], ("logits",), {"logits"}, model().get_layer("logits")):
        q = tfkd.quantization.quantize(model(), skip=given_)
        assert q.report.of("logits").why == "left out by `skip`"
        pruning.plan(model(), filter_rate=0.5, ignore=given_)
        assert tfkd.curriculum.Stage(1, freeze=given_).freeze == ("logits",)
        cut = pruning.cut_layers(model(), drop=given_, return_report=True)[1]
        assert cut.layers == ("logits",)
    q = tfkd.quantization.quantize(model(), skip=["stage1*"])
    assert [row.layer for row in q.report.rows if row.why == "left out by `skip`"] == [
        "conv1", "conv2"
    ]  # fmt: skip


def dropped(entry):
    return set(pruning.cut_layers(model(), drop=entry, return_report=True)[1].layers)


def test_drop_and_keep():
    everything = {path for path in layers() if not path.endswith("_in")}
    stage2 = {path for path in everything if path.startswith("stage2")}
    assert dropped("conv1") == {"stage1/conv1", "stage2/inner/conv1"}
    assert dropped("inner/conv1") == {"stage2/inner/conv1"}
    assert dropped("stage2") >= stage2
    assert dropped(model().get_layer("stage2")) == dropped("stage2") == dropped("stage2*")
    assert dropped("inner") == dropped("stage2/inner") == dropped(layers()["stage2/inner"])
    assert dropped([layers()["stem"], "conv2"]) == {"stem", "stage1/conv2"}
    kept = pruning.cut_layers(model(), keep="stage1", return_report=True)[1]
    assert set(kept.layers) >= stage2 and "stage1/conv1" not in kept.layers
    inside = pruning.cut_layers(model(), keep="inner", return_report=True)[1]
    assert "stage2/inner/conv1" not in inside.layers and "stage1/conv1" in inside.layers
    with pytest.raises(ValueError, match="`drop`: .*Did you mean 'stage2' or 'stage1'"):
        dropped("stage3")
    with pytest.raises(TypeError, match="`keep`: expected names, indices or patterns of blocks"):
        pruning.cut_layers(model(), keep=[1.5])


def test_wrappers_are_looked_through():
    x = keras.Input((6,))
    plain = keras.Model(x, dense("second")(dense("first")(x)))
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(plain)
    name = "prune_low_magnitude_first"
    assert paths.find_layer(wrapped, "first", "student") is wrapped.get_layer(name)
    assert paths.find_layer(wrapped, name, "student") is wrapped.get_layer(name)
    names = [path for path, _ in paths.walk(wrapped)]
    first = wrapped.get_layer(name)
    for entry in ("first", "f*t", name, "prune_low_magnitude_f*", first, first.layer):
        assert paths.matching("skip", entry, names, wrapped) == [name]
    freeze(wrapped, "first", {})
    assert not first.trainable and wrapped.get_layer("prune_low_magnitude_second").trainable


def test_layers_of_losses():
    layer = layers()["stage2/conv10"]
    loss = tfkd.losses.FeatureDistillation(
        teacher_layer_name=layer, student_layer_name="stage2/conv10"
    )
    assert loss.get_config()["teacher_layer_name"] == "conv10"
    with pytest.raises(ValueError, match=r"Give the path of one.*'stage1/conv1'"):
        paths.find_layer(model(), "conv1", "teacher")
    with pytest.raises(ValueError, match="None, since the teacher has no layers to name"):
        paths.find_layer(lambda x: x, "conv1", "teacher")


def test_a_shared_layer_is_one_layer_at_several_paths():
    shared = dense("shared")
    x = keras.Input((6,))
    both = keras.Model(x, chain("b", shared)(chain("a", shared)(x)))
    assert paths.find_layer(both, "shared", "teacher") is shared
    found = paths.matching("freeze", shared, dict(paths.leaves(both)), both)
    assert found == ["a/shared", "b/shared"]
