"""Small data of the user's own, and a network as the benchmarks train it."""

import json

import numpy as np
import pytest
from scripts import squares


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A `.npz` file of 8×8 images."""
    random = np.random.default_rng(0)
    (x_train, y_train), (x_test, y_test) = squares(96, 8, random), squares(60, 8, random)
    path = tmp_path_factory.mktemp("toy") / "toy.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Images of 32×32, and a folder as cifar_teacher.py leaves it."""
    import tfkd

    folder = tmp_path_factory.mktemp("base")
    random = np.random.default_rng(1)
    (x_train, y_train), (x_test, y_test) = squares(260, 32, random), squares(60, 32, random)
    np.savez(folder / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    model = tfkd.models.resnet(8, widths=(4,))
    model.save_weights(str(folder / "teacher.weights.h5"))
    record = {"depth": 8, "widths": [4], "test_accuracy_float32": 0.1}
    (folder / "teacher.json").write_text(json.dumps(record))
    return folder
