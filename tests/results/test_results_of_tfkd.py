"""Every kind of result that tfkd gives, read in all forms."""

import json
import pathlib

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd import pruning, quantization, report
from tfkd.export import Finding, Findings
from tfkd.export.parity import ExportReport
from tfkd.export.tensorrt import EngineReport

CHECK = {"on": "nothing", "reason": "verify=False"}


@pytest.fixture(scope="module")
def results():
    """Name → a result and a few words that stand in each of its forms."""
    model = tfkd.models.resnet(14, 3, (8, 8, 3), (4, 6))
    plan = pruning.plan(model, macs_reduction=0.3)
    choice = pruning.choose_layers(model, 2)
    _, cut = pruning.cut_layers(model, drop=choice, return_report=True)
    numbers = {"operations": 9, "float_operations": 0, "check": CHECK, "scale": np.float32(0.5)}
    q = quantization.quantize(keras.Sequential([keras.layers.Dense(3, input_shape=(4,))]))
    outputs = [[2, 1], [0, 3], [5, 4], [8, 1]]
    broken = Finding("qdq", "error", "a<b", "It is | so.", "Do it.")
    return {
        "plan": (plan, ("group", "target 30.0 % fewer MACs")),
        "choice": (choice, ("2 of 3 candidates kept, by position.", "stage1_block1")),
        "cut": (cut, ("Removed stage1_block2",)),
        "selection": (pruning.Selection({"conv": (1, 3)}, "f00d"), ("conv", "1, 3")),
        "profile": (report.profile(model), ("total", "MACs")),
        "quantization": (q.report, ("decision", "dense")),
        "classes": (report.classification([0, 1, 1, 0], outputs), ("mean", "Accuracy 75.0 %")),
        "score": (report.score([0, 1], [[2, 1], [3, 0]]), ("accuracy 50.0 % of 2 examples",)),
        "seeds": (report.seed_stats([92.7, 93.1, 93.5]), ("93.1 ± 0.4",)),
        "against": (report.Against("a", "b", -0.2), ("a: −0.2 points, against b",)),
        "lint": (Findings((broken,)), ("1 error", "Do it.")),
        "no lint": (Findings(()), ("no findings",)),
        "export": (
            ExportReport(pathlib.PurePosixPath("m.tflite"), 8_504, "int8", "int8", numbers),
            ("m.tflite", "8.3 KiB", "int8, int8", "9 (0 in float)", "nothing: verify=False"),
        ),
        "engine": (
            EngineReport(pathlib.PurePosixPath("m.engine"), 9, "k", "GPU", "10.3", False),
            ("m.engine", "10.3"),
        ),
    }


def test_all_forms_say_the_same(results, tmp_path):
    for name, (result, words) in results.items():
        page = result.html()
        assert result._repr_html_()[:5] == "<div "
        for word in words:
            assert word in str(result), (name, word)
            assert word in result.markdown() and word in page, (name, word)
        folder = result.save(tmp_path / name)
        saved = json.loads((folder / f"{result.file_name}.json").read_text("utf-8"))
        assert saved == result.to_dict() != {}, name


def test_what_plans_and_exports_know_as_values(results):
    plan = results["plan"][0]
    found = plan.to_dict()
    assert found["remove"] == dict(plan.remove) and found["target"] == ["macs_reduction", 0.3]
    assert found["macs_before"] == results["profile"][0].macs
    assert "graph" not in found and found["frozen"][0]["reason"]
    assert results["export"][0].to_dict()["numbers"]["scale"] == 0.5
    assert results["selection"][0].to_dict() == {"removed": {"conv": [1, 3]}, "fingerprint": "f00d"}
    lint = results["lint"][0].to_dict()
    assert lint["found"][0]["node"] == "a<b"
