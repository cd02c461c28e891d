"""Exports that are accepted, warned of or refused by what their outputs are."""

import warnings

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd import artifacts, export
from tfkd.export import parity, saved_model

layers = keras.layers
RNG = np.random.default_rng(0)


def test_a_confident_classifier_is_exported_in_int8(tmp_path):
    keras.utils.set_random_seed(0)
    centres, y = RNG.normal(size=(4, 8)) * 2, RNG.integers(0, 4, 600)
    x = (centres[y] + RNG.normal(size=(600, 8))).astype("float32")
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu")])
    model.add(layers.Dense(4, "softmax"))
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=30, verbose=0)
    assert (model.predict(x, verbose=0).max(1) > 0.998).mean() > 0.5
    path = tmp_path / "m.tflite"
    report = export.to_tflite(model, path, mode="int8", data=x[:300], verify=x[300:])
    assert report.numbers["clipped"] == 0 and report.numbers["failures"] == []
    (row,) = report.numbers["outputs"].values()
    assert row["kind"] == "classes"


def test_two_classes_that_are_far_apart(tmp_path):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(2, activation="softmax")])
    model.layers[-1].set_weights([RNG.normal(size=(8, 2)) * 10, np.zeros(2)])
    x = RNG.normal(size=(400, 8)).astype("float32")
    report = export.to_tflite(
        model, tmp_path / "m.tflite", mode="int8", data=x[:200], verify=x[200:]
    )
    assert report.numbers["clipped"] == 0


def test_a_tanh_at_its_ends_is_not_clipped(tmp_path):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(3, "tanh", name="y")])
    model.layers[-1].set_weights([RNG.normal(size=(8, 3)) * 10, np.zeros(3)])
    x = RNG.normal(size=(200, 8)).astype("float32")
    path, settled = tmp_path / "m.tflite", {"y": {"min_agreement": 0}}
    report = export.to_tflite(model, path, "int8", data=x, verify=x, thresholds=settled)
    assert report.numbers["clipped"] == 0
    assert artifacts.read_manifest(path)["recipe"]["thresholds"]["outputs"] == settled


ROWS = np.float32(np.eye(4)[np.arange(200) % 4])
# Inputs of which every 5th, or 2nd, has two elements swapped in the file's answer.
SOME, MANY = 5, 2


def answering(activation=None):
    """A model that returns its input, times 1.5."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation, name="y")])
    model.layers[-1].set_weights([np.eye(4) * 1.5, np.zeros(4)])
    return model


@pytest.fixture
def wrong(monkeypatch):
    """Lets the file be wrong in every n-th of the examples that verify it."""

    def set_up(every):
        def compare(graph, _, images):
            (x,) = images.values()
            swapped = x.copy()
            swapped[::every] = x[::every][:, [1, 0, 3, 2]]
            expected, received = (
                graph.predict(images),
                graph.predict(dict.fromkeys(images, swapped)),
            )
            return parity.measure(expected, received, {}), {"y": 2}

        monkeypatch.setattr(saved_model, "_compare", compare)

    return set_up


ERRORS = {"max_error": 9, "max_mean_error": 9}


@pytest.mark.parametrize(
    ("every", "activation", "kind", "settled", "refused"),
    [
        (SOME, "softmax", None, {}, True),
        (SOME, "softmax", None, {"y": {"min_agreement": 0}}, False),
        (SOME, None, None, {"y": {"min_agreement": 0.95}}, True),
        (SOME, None, None, {"min_agreement": 0.95}, True),
        (SOME, None, None, {"y": {"min_agreement": 0}}, False),
        (SOME, None, "logits", {}, True),
        (MANY, "sigmoid", "sigmoid", {}, False),
        (MANY, None, None, {}, True),
    ],
)
def test_what_an_output_is(tmp_path, wrong, every, activation, kind, settled, refused):
    wrong(every)
    model = answering(activation)
    if kind:
        tfkd.losses.declare_outputs(model, kind)
    options = {"verify": ROWS, "thresholds": {**ERRORS, **settled}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if refused:
            words = f"{200 - 200 // every} of 200 decided examples agree"
            with pytest.raises(ValueError, match=words):
                export.to_saved_model(model, tmp_path / "m", **options)
        else:
            assert export.to_saved_model(model, tmp_path / "m", **options).verified


def test_what_is_not_known_is_a_warning_at_the_users_line(tmp_path, wrong):
    wrong(6)  # 166 of 200: by chance 0.99 may show down to 195, and 0.84 down to 159
    with pytest.warns(UserWarning, match=r"166 of 200.*'y': {'min_agreement': 0.99}") as caught:
        report = export.to_saved_model(answering(), tmp_path / "m", verify=ROWS, thresholds=ERRORS)
    assert len(caught) == 1 and caught[0].filename == __file__
    (text,) = report.numbers["warnings"]
    assert "166 of 200" in text and "warning" in report.text()


def test_outputs_are_named_as_in_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"one of 'y', .*received 'z'"):
        export.to_saved_model(answering(), tmp_path / "m", thresholds={"z": {"max_error": 1}})
    with pytest.raises(ValueError, match=r"'max_eror'.*'max_error'"):
        export.to_onnx(answering(), tmp_path / "m", thresholds={"y": {"max_eror": 1}})


def price_and_chance():
    """A price in thousands beside a probability, in one output."""
    x = keras.Input((4,))
    price = layers.Rescaling(1e4)(layers.Dense(1)(x))
    return keras.Model(x, layers.Concatenate(name="y")([price, layers.Dense(1, "sigmoid")(x)]))


def test_a_lost_column_is_refused_on_given_examples_and_warned_of_on_others(tmp_path):
    model, x = price_and_chance(), RNG.normal(size=(200, 4)).astype("float32")
    path, words = tmp_path / "m.tflite", "output 'y': column 1 of axis 1 is 0 everywhere"
    with pytest.raises(ValueError, match=words):
        export.to_tflite(model, path, "int8", data=x, verify=x)
    assert not path.exists()
    with pytest.warns(UserWarning, match=f"8 calibration examples: {words}"):
        report = export.to_tflite(model, path, "int8", data=x)
    assert words in report.text()
    # As two outputs each has a scale of its own.
    parts = keras.Model(model.input, model.layers[-1].input)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.to_tflite(parts, path, "int8", data=x, verify=x)
        for mode in ("float32", "float16"):
            export.to_tflite(model, path, mode, verify=x)
        export.to_onnx(model, tmp_path / "m.onnx", verify=x)


def test_a_lost_column_of_a_quantized_model_is_said_at_its_calibration(tmp_path):
    x = RNG.normal(size=(200, 4)).astype("float32")
    for target, exporter in (("tflite", export.to_tflite), ("tensorrt", export.to_onnx)):
        q = tfkd.quantization.quantize(price_and_chance(), target)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tfkd.quantization.calibrate(q, x)
        lost = set(np.unique(q(x).numpy()[:, 1])) == {0.0}
        assert lost == any("column 1 of axis 1 is 0 everywhere" in str(w.message) for w in caught)
        # The file holds what the quantized model computes, whatever that is.
        exporter(q, tmp_path / target, verify=x)
