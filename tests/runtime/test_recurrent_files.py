"""Files with variable tensors: every run starts from the state that the model starts from."""

import numpy as np
import pytest
import tf_keras as keras

from tfkd import export, report
from tfkd.formats import litert
from tfkd.runtime import Predictor, compiled

layers = keras.layers
RNG = np.random.default_rng(11)
X = RNG.normal(size=(12, 5, 3)).astype("float32")

KINDS = {
    "stacked": lambda: [layers.LSTM(4, return_sequences=True), layers.LSTM(4)],
    "bidirectional": lambda: [layers.Bidirectional(layers.LSTM(3))],
    "sequences": lambda: [layers.LSTM(4, return_sequences=True), layers.Flatten()],
    "after time-distributed": lambda: [
        layers.TimeDistributed(layers.Dense(4, "relu")),
        layers.LSTM(4, go_backwards=True),
    ],
}


def classifier(kind):
    inside = KINDS[kind]()
    model = keras.Sequential([keras.Input((5, 3)), *inside, layers.Dense(4, "softmax")])
    model.set_weights([RNG.normal(0, 1.0, w.shape) for w in model.get_weights()])
    return model, model.predict(X, verbose=0)


@pytest.mark.parametrize(
    ("kind", "mode", "size"),
    [
        ("stacked", "float32", 1),
        ("bidirectional", "dynamic", 3),
        pytest.param("sequences", "float16", 1, marks=pytest.mark.slow),
        ("after time-distributed", "float32", 5),
    ],
)
def test_an_answer_does_not_depend_on_who_asked_before(kind, mode, size, tmp_path):
    model, want = classifier(kind)
    path = tmp_path / "m.tflite"
    found = export.to_tflite(model, path, mode, batch_size=size, verify=X).numbers
    assert found["max_error"] < (5e-3 if mode == "float16" else 1e-5)
    for options in ({}, {"batch": 8}, {"cache_size": 20}):
        with Predictor(path, **options) as predictor:
            for rows in (slice(None), slice(0, 3), slice(0, 3), slice(None, None, -1)):
                got = predictor(np.ascontiguousarray(X[rows]))
                np.testing.assert_allclose(got, want[rows], atol=5e-3)
    predictor = Predictor(path)
    once = [predictor.run_one(np.ascontiguousarray(X[:size])) for _ in range(3)]
    np.testing.assert_array_equal(once[0], once[2])


def test_measured_without_state_and_never_in_what_cannot_reset_it(tmp_path, monkeypatch):
    model, want = classifier("stacked")
    path = export.to_tflite(model, tmp_path / "m.tflite").path
    assert litert.has_variables(path)
    (row,) = report.compare({"file": path}, (X, want.argmax(1)), runs=3, seconds=None).rows
    assert row.accuracy.values == (100.0,)
    monkeypatch.setattr(compiled, "LEAST_BYTES", 0)
    for _ in range(2):
        predictor = Predictor(path, artifacts_dir=tmp_path / "kept")
        np.testing.assert_allclose(predictor(X), want, atol=1e-5)
        np.testing.assert_allclose(predictor(X[:1]), want[:1], atol=1e-5)
    unrolled = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4, unroll=True)])
    assert not litert.has_variables(export.to_tflite(unrolled, tmp_path / "plain.tflite").path)


def svdf():
    """A file by hand: one SVDF of rank 1, whose memory of 3 steps is a variable tensor."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    weights = [np.eye(2, dtype="float32"), np.float32([[1, 2, 3], [4, 5, 6]])]
    file = schema.ModelT()
    file.version, file.description = 3, b"svdf"
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SVDF
    file.operatorCodes = [code]
    file.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors = []
    shapes = {"x": [1, 2], "feature": [2, 2], "time": [2, 3], "state": [1, 6], "y": [1, 2]}
    for name, shape in shapes.items():
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name.encode(), shape, 0
        tensor.isVariable = name == "state"
        if name in ("feature", "time"):
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(weights.pop(0).tobytes(), np.uint8)
            tensor.buffer = len(file.buffers)
            file.buffers.append(buffer)
        graph.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, 2, -1, 3], [4]
    operator.builtinOptionsType = schema.BuiltinOptions.SVDFOptions
    operator.builtinOptions = schema.SVDFOptionsT()
    operator.builtinOptions.rank = 1
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [4]
    file.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(file.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_the_memory_of_an_svdf_filter(tmp_path):
    """With an empty memory only the last weight over time counts: 3 and 6."""
    (tmp_path / "m.tflite").write_bytes(svdf())
    predictor = Predictor(tmp_path / "m.tflite")
    x = np.float32([[1.0, -2.0]])
    for _ in range(3):
        np.testing.assert_allclose(predictor(x), [[3.0, -12.0]])


@pytest.mark.parametrize("layer", [layers.LSTM, layers.GRU])
def test_layers_that_remember_on_purpose_are_refused(layer, tmp_path):
    model = keras.Sequential(
        [keras.Input((5, 3), batch_size=1), layer(4, stateful=True, name="memory")]
    )
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="memory.*stateful=False.*initial_state"):
        export.to_tflite(model, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="stateful=False"):
        Predictor(tmp_path / "m.keras")
