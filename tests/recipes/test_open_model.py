"""Models by path and by name."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import Distiller, losses
from tfkd.recipes.models import build, open_model


def tiny():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="logits")], name="tiny")


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_file_of_keras_2(tmp_path, ending):
    model, x = tiny(), np.eye(4, dtype="float32")
    model.save(tmp_path / f"m{ending}")
    found = open_model(tmp_path / f"m{ending}")
    np.testing.assert_array_equal(found(x), model(x))
    assert not found._is_compiled


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_file_of_keras_3(tmp_path, ending):
    keras_3 = pytest.importorskip("keras", minversion="3.0")
    model = keras_3.Sequential([keras_3.Input((4,)), keras_3.layers.Dense(3)])
    model.save(tmp_path / f"m{ending}")
    found, x = open_model(str(tmp_path / f"m{ending}")), np.eye(4, dtype="float32")
    assert isinstance(found, keras.Model)
    np.testing.assert_allclose(found(x), np.asarray(model(x)), atol=1e-6)


class Doubled(tf.Module):
    """A SavedModel without Keras."""

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
    def __call__(self, x):
        return 2.0 * x[:, :3]


def test_a_saved_model_teaches_and_can_do_nothing_else(tmp_path):
    folder, module = tmp_path / "saved", Doubled()
    tf.saved_model.save(module, str(folder), signatures=module.__call__)
    teacher = open_model(folder, role="teacher")
    Distiller(teacher, tiny(), losses.LogitsDistillation(2.0)).compile("sgd", "mse")
    for role in ("model", "student"):
        with pytest.raises(ValueError, match="without Keras layers.*--teacher=.*save the original"):
            open_model(folder, role=role)


def test_a_saved_model_of_keras_is_a_model(tmp_path):
    model, x = tiny(), np.eye(4, dtype="float32")
    model.save(tmp_path / "saved", save_format="tf")
    np.testing.assert_array_equal(open_model(tmp_path / "saved")(x), model(x))


@pytest.mark.parametrize(
    ("spec", "kind", "params"),
    [
        ("resnet8:4,8,16", "Functional", None),
        ("mlp:5,4", "Sequential", 48 * 5 + 5 + 5 * 4 + 4 + 4 * 2 + 2),
        ("text_mlp:8,6", "Functional", 50 * 8 + 8 * 6 + 6 + 6 * 2 + 2),
        ("ssd:4,4,8,8,8", "Functional", None),
        pytest.param("mobilenetv2", "Functional", None, marks=pytest.mark.slow),
    ],
)
def test_an_architecture_by_name(spec, kind, params):
    size = (64, 64, 3) if "ssd" in spec else (32, 32, 3) if "net" in spec else (4, 4, 3)
    model = build(spec, 2, size, vocab_size=50, max_length=8)
    assert type(model).__name__ == kind
    outputs = model.output["classes"] if "ssd" in spec else model.output
    assert outputs.shape[-1] == (3 if "ssd" in spec else 2)
    if params is not None:
        assert model.count_params() == params


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnt20", "Did you mean 'resnet20'"),
        ("MobilNetV2", "Did you mean 'MobileNetV2'"),
        ("resnet", "expected resnetDEPTH"),
        ("resnet8:a,b", "expected resnetDEPTH"),
        ("mlp", "Try mlp:64"),
        ("MobileNetV2:coco", "MobileNetV2:imagenet"),
        ("m.tflite", "can be run and measured but not changed"),
        ("nobody knows", "no file of this name"),
    ],
)
def test_a_wrong_name(name, said):
    with pytest.raises(ValueError, match=said):
        open_model(name)


def test_files_that_are_no_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny().save("good.keras")
    tiny().save_weights("weights.h5")
    for name in ("broken.keras", "broken.h5", "notes.txt"):
        (tmp_path / name).write_text("nothing")
    (tmp_path / "folder").mkdir()
    lambdas = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x + 1)])
    lambdas.save("code.h5")
    for name, error, said in [
        ("godd.keras", FileNotFoundError, "Did you mean 'good.keras'"),
        ("weights.h5", ValueError, "weights and no model"),
        ("broken.keras", ValueError, "no zip archive"),
        ("broken.h5", ValueError, "an HDF5 file"),
        ("notes.txt", ValueError, "file of another kind"),
        ("folder", ValueError, "saved_model.pb"),
        (".", ValueError, "It holds broken.h5"),
        ("code.h5", ValueError, "without Python code"),
    ]:
        with pytest.raises(error, match=said):
            open_model(name)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_other_precisions_become_float32(policy, ending, tmp_path):
    image = keras.Input((4,), dtype="float64" if policy == "float64" else None)
    inner = keras.Sequential([keras.layers.Dense(5, dtype=policy, input_shape=(4,), name="a")])
    frozen = keras.layers.Dense(3, dtype=policy, name="b", trainable=False)
    keras.Model(image, frozen(inner(image))).save(tmp_path / f"m.{ending}")
    with pytest.warns(UserWarning, match=rf"m\.{ending} computes in .*float.*taken in float32"):
        opened = open_model(tmp_path / f"m.{ending}")
    assert {layer.compute_dtype for layer in opened._flatten_layers()} == {"float32"}
    assert opened.inputs[0].dtype == "float32"
    kernel, bias = inner.layers[0].get_weights()
    last = frozen.get_weights()
    x = np.eye(4, dtype="float32")
    np.testing.assert_allclose(opened(x), (x @ kernel + bias) @ last[0] + last[1], rtol=1e-5)
    assert len(opened.trainable_weights) == 2
