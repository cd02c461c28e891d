"""The example of several workers: one of two is killed, and the training ends all the same."""

import json

import pytest
import scripts

SMALL = ("--teacher-epochs=2", "--epochs=3", "--decay=0.5", "--curriculum")


@pytest.mark.slow
def test_a_worker_dies_and_the_training_goes_on(tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "out"
    kill = ("--kill-worker=1", "--kill-at-step=17")  # in the second of three epochs
    done = scripts.run("examples/distributed.py", *SMALL, *kill, f"--out={out}")
    errors = "".join(path.read_text()[-2000:] for path in (out / "workers").iterdir())
    assert done.returncode == 0, done.stderr[-2000:] + errors
    assert "worker 1 died" in done.stdout and "resuming after 1 epochs" in done.stdout
    assert "1 restarts" in done.stdout
    result = json.loads((out / "result.json").read_text())
    assert 10 < result["accuracy"] <= 100 and result["replicas"] == 2

    import tf_keras as keras

    student = keras.models.load_model(out / "student.keras")
    assert student.get_layer("hidden").units == 32  # of 64: half have decayed and are cut out
    runs = {path.name for path in (out / "logs").iterdir() if path.is_dir()}
    assert runs == {"curriculum", "filter_decay", "train"}
    assert not list(out.rglob("workertemp*"))


def test_bad_flags_are_found_at_once(tmp_path):
    done = scripts.run("examples/distributed.py", "--workers=0", f"--out={tmp_path / 'out'}")
    assert done.returncode != 0 and "workers" in done.stderr
    assert not (tmp_path / "out").exists()
