"""The logs as the real TensorBoard server hands them to a browser."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
import pytest
import tf_keras as keras

import tfkd

PATIENCE = 60  # seconds, on a busy machine


@contextlib.contextmanager
def serve(folder, log):
    """The server on a free port of this machine; always stopped at the end."""
    # Port 0 is the system's choice: the server prints which.
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield address(server, log)
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def address(server, log):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            return found.group()
        time.sleep(0.1)
    raise AssertionError(f"TensorBoard did not start:\n{log.read_text()}")


def get(base, path, body=None, **query):
    url = f"{base}/data/{path}?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    if body is not None:
        request.data = json.dumps(body).encode()
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def wait_for(base, tag):
    """The server reads the files in the background."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        tags = get(base, "plugin/scalars/tags")
        if all(tag in tags.get(f"run/{part}", {}) for part in ("train", "validation")):
            return tags
        time.sleep(0.2)
    raise AssertionError(f"no {tag} in {tags}")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """(folder of the logs, history)."""
    keras.utils.set_random_seed(3)

    def net(units, name):
        return keras.Sequential(
            [keras.layers.Dense(units, "relu", input_shape=(4,)), keras.layers.Dense(3)], name=name
        )

    distiller = tfkd.Distiller(
        net(8, "big"),
        net(4, "small"),
        [tfkd.losses.LogitsDistillation(2.0), tfkd.losses.RelationalDistillation()],
        student_loss_weight=0.25,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(0.125), loss, metrics=["accuracy"])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4)).astype("float32"), rng.integers(0, 3, 32)
    folder = tmp_path_factory.mktemp("logs")
    board = tfkd.callbacks.TensorBoard(folder / "run", per_step=1)
    history = distiller.fit(
        x, y, 8, epochs=2, validation_data=(x[:8], y[:8]), verbose=0, callbacks=[board]
    )
    alone = net(4, "small")
    alone.compile(keras.optimizers.Adam(0.125), loss, metrics=["accuracy"])
    board = tfkd.callbacks.TensorBoard(folder / "alone")
    alone.fit(x, y, 8, epochs=2, validation_data=(x[:8], y[:8]), verbose=0, callbacks=[board])
    return folder, history.history


@pytest.fixture(scope="module")
def base(logs, tmp_path_factory):
    with serve(logs[0], tmp_path_factory.mktemp("server") / "log.txt") as url:
        wait_for(url, "distillation/agreement")
        yield url


def test_scalars_are_the_history(base, logs):
    for name in ("agreement", "logits_distillation", "relational_distillation", "total_loss"):
        for part, key in (("train", name), ("validation", f"val_{name}")):
            points = get(
                base, "plugin/scalars/scalars", run=f"run/{part}", tag=f"distillation/{name}"
            )
            assert [step for _, step, _ in points] == [0, 1]
            assert [v for _, _, v in points] == pytest.approx(logs[1][key], rel=1e-5)


def test_points_by_step_reach_the_server(base):
    for tag in ("distillation_by_step/student_loss", "learning_rate_by_step"):
        points = get(base, "plugin/scalars/scalars", run="run/train", tag=tag)
        assert [step for _, step, _ in points] == list(range(1, 9))


def test_time_series_tab_lists_runs_with_one_tag_for_both(base):
    tags = get(base, "plugin/timeseries/tags")["scalars"]["runTagInfo"]
    shared = set(tags["run/train"]) & set(tags["run/validation"])
    assert {"epoch_accuracy", "distillation/agreement"} <= shared


def test_hyper_parameters_and_metrics_are_in_one_session(base, logs):
    experiment = get(base, "plugin/hparams/experiment", {})
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"model", "teacher", "batch_size", "logits_distillation/temperature"} <= names
    metric = {"group": "validation", "tag": "distillation/agreement"}
    assert metric in [info["name"] for info in experiment["metricInfos"]]

    request = {
        "allowedStatuses": ["STATUS_UNKNOWN"],
        "colParams": [{"metric": metric}],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = get(base, "plugin/hparams/session_groups", request)["sessionGroups"]
    (group,) = [group for group in groups if group["hparams"]["teacher"] != "none"]
    assert group["hparams"]["learning_rate"] == 0.125
    assert group["hparams"]["batch_size"] == 8
    assert group["hparams"]["teacher"] == "big"
    values = {
        (value["name"]["group"], value["name"]["tag"]): value["value"]
        for value in group["metricValues"]
    }
    found = values["validation", "distillation/agreement"]
    assert found == pytest.approx(logs[1]["val_agreement"][-1])


def test_a_baseline_stands_in_the_columns_of_the_distilled_run(base):
    metric = {"group": "validation", "tag": "epoch_accuracy"}
    request = {
        "allowedStatuses": ["STATUS_UNKNOWN"],
        "colParams": [{"metric": metric}],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = get(base, "plugin/hparams/session_groups", request)["sessionGroups"]
    by_teacher = {group["hparams"]["teacher"]: group for group in groups}
    assert set(by_teacher) == {"big", "none"}
    for group in by_teacher.values():
        assert group["hparams"]["model"] == "small"
        assert group["hparams"]["model_parameters"] == 4 * 4 + 4 + 4 * 3 + 3
        names = [value["name"] for value in group["metricValues"]]
        assert metric in names
    assert by_teacher["none"]["hparams"]["student_loss_weight"] == 1.0
    assert by_teacher["big"]["hparams"]["student_loss_weight"] == 0.25


def test_text_is_rendered_with_tables(base):
    (entry,) = get(base, "plugin/text/text", run="run", tag="models")
    assert entry["text"].count("<table>") == 4
    assert "<td>67</td>" in entry["text"] and "<td>35</td>" in entry["text"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_a_browser_draws_it(base, tmp_path):
    picture = tmp_path / "tensorboard.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    command += ["--window-size=1200,900", "--virtual-time-budget=20000", f"{base}/#timeseries"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 30_000, "an empty page is smaller"
