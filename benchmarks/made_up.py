"""Made-up data in the forms that the benchmarks read, for `--smallest`: nothing is downloaded."""

from __future__ import annotations

import json
import pathlib
import tempfile

import numpy as np

PARTS = {"train": 320, "dev": 64, "test": 64}  # sentences
CELLS = {"RBC": (200, 60, 60), "WBC": (90, 60, 200), "Platelets": (200, 180, 90)}


def _folder() -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp())


def _bright(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise with a bright stripe for each of ten classes."""
    y = np.arange(count) % 10
    x = rng.integers(0, 60, (count, 32, 32, 3))
    for image, label in zip(x, y, strict=True):
        image[3 * label : 3 * label + 4] += 180
    return x.astype("uint8"), y.astype("uint8")


def cifar(train: int = 400, test: int = 100) -> str:
    """A `.npz` file like cifar10.npz."""
    rng, path = np.random.default_rng(0), _folder() / "cifar10.npz"
    (x_train, y_train), (x_test, y_test) = _bright(train, rng), _bright(test, rng)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return str(path)


def base() -> str:
    """A folder as cifar_teacher.py leaves it, of a narrow ResNet-8 that was not trained."""
    import tf_keras as keras

    import tfkd

    keras.utils.set_random_seed(0)
    folder = _folder()
    tfkd.models.resnet(8, widths=(4,)).save_weights(str(folder / "teacher.weights.h5"))
    record = {"depth": 8, "widths": [4], "epochs": 0, "test_accuracy_float32": 0.1}
    (folder / "teacher.json").write_text(json.dumps(record))
    return str(folder)


def cells() -> str:
    """A folder in VOC layout with the classes of BCCD: coloured squares on grey."""
    from PIL import Image

    rng, folder = np.random.default_rng(0), _folder()
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for part, count in (("train", 24), ("val", 8), ("test", 8)):
        names = [f"{part}{n}" for n in range(count)]
        (folder / "ImageSets/Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            image = rng.integers(120, 140, (120, 160, 3))
            objects = ""
            for kind, colour in CELLS.items():
                x, y = rng.integers(5, 120), rng.integers(5, 80)
                image[y : y + 30, x : x + 30] = colour
                sides = (
                    f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 30}</xmax><ymax>{y + 30}</ymax>"
                )
                objects += f"<object><name>{kind}</name><bndbox>{sides}</bndbox></object>"
            Image.fromarray(image.astype("uint8")).save(folder / "JPEGImages" / f"{name}.jpg")
            size = "<size><width>160</width><height>120</height><depth>3</depth></size>"
            text = f"<annotation>{size}{objects}</annotation>"
            (folder / "Annotations" / f"{name}.xml").write_text(text)
    return str(folder)


def detectors(size: int = 160) -> str:
    """A folder with teacher.keras and boxes.keras of detection_bccd.py, hardly trained."""
    import tf_keras as keras

    import tfkd

    keras.utils.set_random_seed(0)
    folder, anchors = _folder(), tfkd.detection.Anchors.small(size, aspect=0.75)
    for name, kind in (("teacher", "student"), ("boxes", "tiny")):
        model = tfkd.models.ssd(kind, len(CELLS), size, anchors=anchors, name=name)
        model.save(folder / f"{name}.keras")
    return str(folder)


def sentences() -> str:
    """A folder with train, dev and test.tsv, as SST-2."""
    rng, folder = np.random.default_rng(0), _folder()
    words = {0: ("dull", "slow", "poor"), 1: ("fine", "quick", "rich")}
    for part, count in PARTS.items():
        texts = [" ".join(rng.choice(words[n % 2], 3)) for n in range(count)]
        rows = [f"a {text} film {n}\t{n % 2}" for n, text in enumerate(texts)]
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    return str(folder)


def answers() -> str:
    """Logits of a teacher for `sentences`, as minilm_embeddings.py writes them."""
    path = _folder() / "answers.npz"
    sure = {part: np.eye(2, dtype="float32")[np.arange(n) % 2] for part, n in PARTS.items()}
    logits = {f"logits_{part}": values for part, values in sure.items()}
    np.savez(path, document=np.array(json.dumps({"parameters": 1})), **logits)
    return str(path)
