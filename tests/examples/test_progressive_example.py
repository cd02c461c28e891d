"""The example of a training in stages, end to end: images with wrong labels, and texts."""

import json

import numpy as np
import pytest
import scripts

SMALL = ("--teacher-epochs=2", "--epochs=4", "--seeds=1", "--batch-size=16")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Two classes of 8×8 images: a bright upper or lower half."""
    random = np.random.default_rng(0)
    y = np.arange(128) % 2
    x = random.integers(0, 60, (128, 8, 8, 1))
    for image, label in zip(x, y, strict=True):
        image[4 * label : 4 * label + 4] += 150
    path = tmp_path_factory.mktemp("toy") / "toy.npz"
    x = x.astype("uint8")
    np.savez(path, x_train=x[:96], y_train=y[:96], x_test=x[96:], y_test=y[96:])
    return path


@pytest.mark.slow
def test_images_with_wrong_labels(toy, tmp_path):
    pytest.importorskip("matplotlib")
    done = scripts.run(
        "examples/progressive.py", *SMALL, f"--data={toy}", f"--out={tmp_path}", "--noise=0.25"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of the labels of the easiest half are correct, 75 % of all" in done.stdout
    table = json.loads((tmp_path / "table.json").read_text())
    names = [row["model"] for row in table["rows"]]
    assert names == ["teacher", "student alone", "distilled", "progressive"]
    assert len(table["curves"]["test accuracy (%)"]["progressive"][0]) == 4
    assert {path.name for path in tmp_path.iterdir()} >= {
        *("difficulty.npz", "difficulty.npz.manifest.json", "classes.md", "table.md"),
        *("alone_1.keras", "distilled_1.keras", "progressive_1.keras", "logs"),
    }
    assert (tmp_path / "logs" / "progressive_1" / "curriculum").is_dir()


@pytest.mark.slow
def test_texts(tmp_path):
    rows = [f"a {word} film\t{label}" for word, label in (("good", 1), ("bad", 0))] * 40
    for part in ("train", "test"):
        (tmp_path / f"{part}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    out = tmp_path / "out"
    done = scripts.run("examples/progressive.py", *SMALL, f"--data={tmp_path}", f"--out={out}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "progressive" in (out / "table.md").read_text()
    assert "F1" in (out / "classes.md").read_text()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--start=0.9 --noise=0.4", "`end`: expected at least --start"),
        ("--student=alexnet", "Try mlp:64"),
    ],
)
def test_bad_flags_are_found_before_training(toy, tmp_path, flag, words):
    out = tmp_path / "out"
    flags = flag.split()
    done = scripts.run(
        "examples/progressive.py", *SMALL[:1], f"--data={toy}", f"--out={out}", *flags
    )
    assert done.returncode != 0 and words in done.stderr and not out.exists()
