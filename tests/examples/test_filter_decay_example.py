"""The filter decay example and its benchmark from end to end, on small data of the user's own."""

import json

import numpy as np
import pytest
import tf_keras as keras
from scripts import ROOT, run


def example(toy, out, *options):
    small = ("--model=resnet8:8", "--base-epochs=12", "--epochs=4", "--batch-size=16")
    return run("examples/filter_decay.py", f"--data={toy}", f"--out={out}", *small, *options)


def test_set(toy):
    """The test images as the example scales them, in NumPy; and their labels."""
    with np.load(toy) as packed:
        x_train, x_test = packed["x_train"] / 255.0, packed["x_test"] / 255.0
        scaled = (x_test - x_train.mean((0, 1, 2))) / x_train.std((0, 1, 2))
        return scaled.astype("float32"), packed["y_test"]


test_set.__test__ = False


@pytest.mark.slow
def test_example_cuts_filters_out_and_keeps_the_function(toy, tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("matplotlib")
    done = example(toy, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    x, y = test_set(toy)
    load = lambda name: keras.models.load_model(tmp_path / f"{name}.keras")  # noqa: E731
    base, masked, cut, pruned = map(load, ("base", "masked", "cut", "pruned"))

    # The inner convolution of the one block has lost half of its eight filters, or a little more.
    inner = [m.get_layer("stage1_block1_1_conv").kernel.shape[-1] for m in (base, cut, pruned)]
    assert inner[0] == 8 and inner[1] == inner[2] <= 4
    assert cut.count_params() < masked.count_params() == base.count_params()
    kernel = masked.get_layer("stage1_block1_1_conv").kernel.numpy()
    assert (abs(kernel).sum((0, 1, 2)) == 0).sum() == 8 - inner[1]

    before, after = masked.predict(x, verbose=0), cut.predict(x, verbose=0)
    assert np.ptp(before.std(0)) > 0  # it tells images apart
    np.testing.assert_allclose(after, before, atol=1e-4 * np.ptp(before))
    assert (after.argmax(1) == before.argmax(1)).all()

    table = json.loads((tmp_path / "table.json").read_text())
    for row, model in zip(table["rows"], (base, pruned), strict=True):
        accuracy = 100 * (model.predict(x, verbose=0).argmax(1) == y).mean()
        assert row["accuracy"]["values"] == pytest.approx([accuracy], abs=1e-3)
        assert row["params"] == model.count_params()
    macs = [row["macs"] for row in table["rows"]]
    assert 0.4 <= macs[1] / macs[0] <= 0.6
    assert [len(curve) for curve in table["curves"]["test accuracy (%)"].values()] == [12, 4]
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"base.tflite", "pruned.tflite", "table.md", "test_accuracy_curves.png"}
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"base", "decay", "cut"}


@pytest.mark.slow
def test_example_has_other_methods(toy, tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("matplotlib")
    done = example(toy, tmp_path, "--method=hard", "--base-epochs=1", "--epochs=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.stem for path in tmp_path.glob("*.keras")} == {"base", "masked", "cut", "pruned"}


def test_a_bad_option_is_found_before_anything_is_trained_or_written(toy, tmp_path):
    out = tmp_path / "out"
    done = example(toy, out, "--macs-reduction=1.5")
    assert done.returncode != 0
    assert "macs_reduction" in done.stderr
    assert "training" not in done.stdout and not out.exists()


def benchmark(base, out, *options):
    few = ("--images=256", "--epochs=2", "--seeds=2", "--methods", "fd-skd", "none")
    data = (f"--data={base / 'data.npz'}", f"--base={base}", f"--out={out}", "--threads=1")
    return run("benchmarks/prune_cifar.py", *data, *few, *options)


@pytest.mark.slow
def test_benchmark_makes_each_run_once_and_tabulates_all(base, tmp_path):
    pytest.importorskip("matplotlib")
    import tfkd

    first = benchmark(base, tmp_path, "--only=0/3")
    assert first.returncode == 0, first.stderr[-3000:]
    # The list goes seed by seed; this process makes the first and the fourth of it.
    end = "epochs2-images256"
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    runs = [f"{base.name}-fd-skd-{end}-s0-", f"{base.name}-none-{end}-s1-"]
    assert [name.rpartition("-")[0] + "-" for name in sorted(made)] == runs
    second = benchmark(base, tmp_path)
    assert second.returncode == 0, second.stderr[-3000:]
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in made.items())

    records = [json.loads(path.read_text())["record"] for path in tmp_path.glob("*.json")]
    assert len(records) == 4
    network = tfkd.models.resnet(8, widths=(4,))
    network.load_weights(str(base / "teacher.weights.h5"))
    with np.load(base / "data.npz") as packed:
        seen, x = packed["x_train"] / 255, packed["x_test"] / 255
        guesses = network((x - seen.mean((0, 1, 2))) / seen.std((0, 1, 2))).numpy().argmax(1)
        right = 100 * np.mean(guesses == packed["y_test"])
    for record in records:
        method = record["setting"]["method"]
        assert record["steps"] == 2 * (256 // 128) and len(record["curve"]) == 2
        assert (record["macs"][1] < record["macs"][0]) == (method == "fd-skd")
        assert record["base_accuracy"] == pytest.approx(right)
        assert record["passed_its_base"] == (record["accuracy"] > record["base_accuracy"])
    found = [r["accuracy"] for r in records if r["setting"]["method"] == "fd-skd"]
    assert f"| fd-skd | {np.mean(found):.2f} ± {np.std(found, ddof=1):.2f} |" in second.stdout
    assert (tmp_path / f"{base.name}-main.png").exists()


def test_images_that_are_held_out_are_training_images_that_no_network_learns_from(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cifar_teacher
    import made_up

    path = made_up.cifar(train=60, test=20)
    part, _ = cifar_teacher.part_of(path, 20, held_out=10)
    with np.load(path) as packed:
        places = [
            [
                int(np.flatnonzero((packed["x_train"] == image).all((1, 2, 3)))[0])
                for image in images
            ]
            for images in (part.x_train, part.x_test)
        ]
        labels = packed["y_train"]
    assert not set(places[0]) & set(places[1])
    assert [np.bincount(labels[rows]).tolist() for rows in places] == [[2] * 10, [1] * 10]
    assert (part.y_test == labels[places[1]]).all()
    whole, _ = cifar_teacher.part_of(path, 20)
    assert (whole.x_train == part.x_train).all() and len(whole.x_test) == 20


def test_main_table_shows_differences_seed_by_seed(monkeypatch):
    """Of the seeds that both methods have; here 2 and 4 points."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import prune_tables

    accuracy = {"fd-skd": (72.0, 75.0, 90.0), "soft-skd": (70.0, 71.0)}
    records = [
        {
            "setting": {"method": method, "seed": seed},
            "accuracy": value,
            "accuracy_at_cut": None,
            "passed_its_base": False,
            "macs": [100, 50],
            "params": [100, 50],
            "minutes": 1.0,
        }
        for method, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    assert "| fd-skd minus soft-skd | 3.00 ± 1.41 |" in prune_tables.main_table("main", records)


def test_benchmark_loss_is_cross_entropy_and_lambda_times_the_teacher(base, monkeypatch):
    """Its gradient, not a multiple of it: else λ would change the learning rate."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import prune_cifar
    import tensorflow as tf

    import tfkd

    with np.load(base / "data.npz") as packed:
        data = tfkd.data.Dataset(*(packed[k] for k in ("x_train", "y_train", "x_test", "y_test")))
    setting = prune_cifar.Setting(lam=0.3, temperature=2.0, epochs=2)
    training = prune_cifar.Training(setting, data, data.preprocess, base)
    training.model.get_layer("logits").kernel.assign_add(tf.random.normal((4, 10), seed=1))
    x, y = data.preprocess(data.x_train[:16]), data.y_train[:16]
    distiller = training.compiled()
    with tf.GradientTape() as tape:
        loss = distiller.compute_loss(x, y, training=False) - tf.add_n(training.model.losses)
    found = tape.gradient(loss, training.model.get_layer("logits").kernel).numpy()

    # By hand: d/dz of CE is p − onehot, of T²·KL it is T·(softmax(z/T) − softmax(t/T)).
    def softmax(z):
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    features = keras.Model(training.model.input, training.model.get_layer("pool").output)(x).numpy()
    z, t = training.model(x).numpy(), training.teacher(x).numpy()
    signal = softmax(z) - np.eye(10)[y] + 0.3 * 2 * (softmax(z / 2) - softmax(t / 2))
    np.testing.assert_allclose(found, features.T @ signal / 16, atol=1e-5)
