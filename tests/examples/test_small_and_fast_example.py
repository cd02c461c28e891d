"""The way from a base to int8 files, from end to end, on small data of the user's own."""

import json

import numpy as np
import pytest
import tf_keras as keras
from scripts import run


@pytest.mark.slow
def test_it_prunes_quantizes_and_writes_two_files_that_agree(toy, tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("matplotlib")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    small = ("--model=resnet8:8", "--base-epochs=6", "--epochs=2", "--batch-size=32")
    options = (*small, "--quantize-epochs=2", f"--data={toy}", f"--out={tmp_path}")
    done = run("examples/small_and_fast.py", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "decision" in done.stdout and "times" not in done.stderr

    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["model"] for row in table["rows"]] == ["base", "pruned", "pruned, int8"]
    sizes = [row["size"] for row in table["rows"]]
    assert sizes[0] > sizes[1] > sizes[2] > 0
    macs = [row["macs"] for row in table["rows"]]
    assert macs[1] == macs[2] < macs[0]
    assert "fewer MACs" in done.stdout

    # Both files give what the saved model gives, on the images as the example scales them.
    import tfkd

    q = tfkd.quantization.load(tmp_path / "quantized.npz")
    with np.load(toy) as packed:
        x = packed["x_train"] / 255.0
        x = (packed["x_test"] / 255.0 - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    x = x.astype("float32")
    expected = q.predict(x, verbose=0)
    lite = tfkd.runtime.Predictor(tmp_path / "int8.tflite")(x)
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    onnx = session.run(None, {session.get_inputs()[0].name: x})[0]
    for found in (lite, onnx):
        assert np.abs(found - expected).mean() < 0.03 * np.ptp(expected)
    assert keras.models.load_model(tmp_path / "pruned.keras").count_params() < 5000
