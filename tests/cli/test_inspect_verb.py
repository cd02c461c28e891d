"""`tfkd inspect`."""

import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import export


def test_a_model(folder, tfkd):
    code, found, _ = tfkd("inspect", folder / "bright.keras", "--skip_exports", "--json")
    assert code == 0 and set(found) == {"layers", "pruning", "quantization"}
    layers = {row["name"]: row for row in found["layers"]["rows"]}
    # 64 positions, 3 inputs, 4 outputs; 4 inputs, 2 outputs.
    assert (layers["conv"]["macs"], layers["logits"]["macs"]) == (768, 8)
    assert found["pruning"]["macs_reduction"] >= 0.5
    assert "None is left in float" in found["quantization"]["note"]


def test_a_model_in_words_with_every_layer(folder, tfkd):
    code, text, _ = tfkd(
        "inspect", folder / "bright.keras", "--skip-exports", "--all-layers", "--reduction=0.25"
    )
    assert code == 0
    for part in ("Layers\n------", "Pruning", "target 25.0 % fewer MACs", "conv  ", "int8"):
        assert part in text


@pytest.mark.slow
def test_what_the_targets_say(folder, tfkd):
    code, found, err = tfkd("inspect", folder / "bright.keras", "--json")
    assert code == 0 and "trying the file formats" in err
    assert found["targets"]["TFLite"] == "exported, and LiteRT loads it"
    assert found["targets"]["TensorRT"].startswith("exported; TensorRT's rules:")


def test_what_stays_in_float_is_listed_with_its_reason(tmp_path, tfkd):
    image = keras.Input((8, 4))
    x = keras.layers.LayerNormalization(name="norm")(image)
    keras.Model(image, keras.layers.Dense(2, name="logits")(x)).save(tmp_path / "m.keras")
    _, found, _ = tfkd("inspect", tmp_path / "m.keras", "--skip_exports", "--json")
    assert [row["layer"] for row in found["quantization"]["rows"]] == ["norm"]
    assert found["quantization"]["rows"][0]["why"]


def test_a_tflite_file(folder, tfkd):
    code, found, _ = tfkd("inspect", folder / "bright.tflite", "--json")
    assert code == 0
    assert found["file"]["bytes"] == (folder / "bright.tflite").stat().st_size
    assert found["file"]["manifest"] == "agrees with the file"
    ports = found["inputs_and_outputs"]["rows"]
    assert [(p["side"], p["dtype"], p["shape"]) for p in ports] == [
        ("input", "uint8", "1×8×8×3"),
        ("output", "uint8", "1×2"),
    ]
    assert found["metadata"] == {
        "labels": ["dark", "bright"],
        "scaling": "(pixels - 127.5) / 127.5",
    }
    assert "0 of" in found["operations"]["note"] and "(0%)" in found["operations"]["note"]


def test_float_operations_are_counted(tmp_path, tfkd):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="logits")])
    export.to_tflite(model, tmp_path / "m.tflite", verify=np.eye(4, dtype="float32"))
    code, text, _ = tfkd("inspect", tmp_path / "m.tflite")
    assert code == 0 and "FULLY_CONNECTED" in text and "1 of 1 operations (100%)" in text
    assert "labels   none" in text


@pytest.mark.slow
def test_an_onnx_file_with_the_rules_of_tensorrt(tmp_path, tfkd):
    pytest.importorskip("tf2onnx")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="logits")])
    export.to_onnx(model, tmp_path / "m.onnx", verify=np.eye(4, dtype="float32"))
    code, found, _ = tfkd("inspect", tmp_path / "m.onnx", "--json")
    assert code == 0 and "tensorrt's_rules" in found
    assert {row["operation"] for row in found["operations"]["rows"]} >= {"MatMul"}


def test_a_saved_model_has_inputs_and_no_layers(tmp_path, tfkd):
    class Half(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
        def __call__(self, x):
            return {"half": x / 2}

    module = Half()
    tf.saved_model.save(module, str(tmp_path / "half"), signatures=module.__call__)
    code, found, _ = tfkd("inspect", tmp_path / "half", "--json")
    assert code == 0 and "without Keras layers" in found["file"]["kind"]
    names = [port["name"] for port in found["inputs_and_outputs"]["rows"]]
    assert names == ["x", "half"]


def test_open_sizes_are_counted_for_a_shape(tmp_path, tfkd):
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 1, name="conv")(image)
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(x)).save(tmp_path / "m.keras")
    argv = ("inspect", tmp_path / "m.keras", "--skip_exports", "--json")
    _, found, _ = tfkd(*argv)
    assert found["layers"].startswith("Not counted; --input_shape=H,W,C gives it")
    _, found, _ = tfkd(*argv, "--input-shape=8,8,3")
    assert [row["macs"] for row in found["layers"]["rows"] if row["name"] == "conv"] == [768]


def test_layers_of_ones_own_come_from_a_module(tmp_path, tfkd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "cli_own_layers.py").write_text(
        "import tf_keras as keras\n"
        "@keras.utils.register_keras_serializable('cli_own')\n"
        "class Twice(keras.layers.Layer):\n    def call(self, x):\n        return 2 * x\n"
    )
    import cli_own_layers

    image = keras.Input((4,))
    keras.Model(image, cli_own_layers.Twice()(image)).save("m.keras")
    keras.saving.get_custom_objects().pop("cli_own>Twice")
    sys.modules.pop("cli_own_layers")
    code, _, err = tfkd("inspect", "m.keras", "--skip_exports")
    assert code == 3 and "Your own cli_own>Twice" in err and "--imports=MODULE" in err
    assert tfkd("inspect", "m.keras", "--skip_exports", "--imports=cli_own_layers")[0] == 0
    code, _, err = tfkd("inspect", "m.keras", "--imports=no_such_layers")
    assert code == 3 and "No module named 'no_such_layers'" in err


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["nothing.tflite"], 3, "There is no file 'nothing.tflite'"),
        (["nothing.keras"], 3, "There is no file 'nothing.keras'"),
        (["resnt20"], 3, "Did you mean 'resnet20'"),
        (["resnet8", "--reduction=2"], 2, "--reduction"),
        (["resnet8", "--input_shape=a,b"], 2, "--input_shape"),
    ],
)
def test_wrong_input(tfkd, argv, code, said):
    found, out, err = tfkd("inspect", *argv)
    assert (found, out) == (code, "") and said in err


def test_a_damaged_file(folder, tmp_path, tfkd):
    whole = (folder / "bright.tflite").read_bytes()
    (tmp_path / "m.tflite").write_bytes(whole[: len(whole) // 2])
    code, out, err = tfkd("inspect", tmp_path / "m.tflite")
    assert (code, out) == (3, "") and "m.tflite" in err and "Traceback" not in err
