"""Writers of metrics, with stand-ins for MLflow and Weights & Biases."""

import sys
import types

import pytest

from tfkd import report

METRICS = {"accuracy/int8 (a=b)": 93.5, "accepted": 1}


def test_mlflow_gets_names_that_it_allows(monkeypatch, tmp_path):
    logged, files = [], []
    module = types.SimpleNamespace(
        log_metrics=lambda values, step: logged.append((values, step)), log_artifact=files.append
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    report.to_mlflow(METRICS, step=3, page=tmp_path / "report.html")
    assert logged == [({"accuracy/int8 _a_b_": 93.5, "accepted": 1.0}, 3)]
    assert files == [str(tmp_path / "report.html")]


@pytest.mark.parametrize("active", [True, False])
def test_wandb_gets_metrics_and_the_page(monkeypatch, tmp_path, active):
    logged, begun = [], []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    module = types.SimpleNamespace(
        run=run if active else None,
        init=lambda: begun.append(1) or run,
        Html=lambda text, inject: ("html", text),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    (tmp_path / "report.html").write_text("<p>", encoding="utf-8")
    report.to_wandb(METRICS, page=tmp_path / "report.html")
    assert logged == [
        ({"accuracy/int8 (a=b)": 93.5, "accepted": 1.0}, 0), ({"report": ("html", "<p>")}, 0)
    ]  # fmt: skip
    assert len(begun) == (not active)


@pytest.mark.parametrize(("write", "name"), [("to_mlflow", "mlflow"), ("to_wandb", "wandb")])
def test_they_say_what_is_missing_or_wrong(monkeypatch, write, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        getattr(report, write)(METRICS)
    with pytest.raises(TypeError, match="`metrics`"):
        getattr(report, write)([1.0])
    with pytest.raises((ValueError, TypeError), match="a finite number"):
        getattr(report, write)({"a": float("nan")})
