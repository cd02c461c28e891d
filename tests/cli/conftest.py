"""A classifier of bright and dark images by hand, its file, and its data."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tf_keras as keras

from tfkd import cli, export

LAYERS = keras.layers
SIDE = 8


def pictures(count, seed=0):
    """Dark images (class 0) and bright ones (class 1), far from the middle, in uint8."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 2
    level = np.where(y, 200, 50)[:, None, None, None] + rng.integers(-20, 21, (count, 1, 1, 1))
    x = np.clip(level + rng.integers(-15, 16, (count, SIDE, SIDE, 3)), 0, 255)
    return x.astype("uint8"), y


def classifier():
    """Bright if the mean of pixels in −1..1 is above 0; every weight is given."""
    image = keras.Input((SIDE, SIDE, 3), name="image")
    conv, head = LAYERS.Conv2D(4, 1, name="conv"), LAYERS.Dense(2, name="logits")
    model = keras.Model(image, head(LAYERS.GlobalAveragePooling2D()(conv(image))), name="bright")
    conv.set_weights([np.full((1, 1, 3, 4), 1 / 3, "float32"), np.zeros(4, "float32")])
    head.set_weights([np.float32([[-2, 2]] * 4), np.zeros(2, "float32")])
    return model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """bright.keras, bright.tflite with uint8 input, data.npz, and pictures of both kinds."""
    from PIL import Image

    root = tmp_path_factory.mktemp("cli")
    model, (x, y) = classifier(), pictures(80)
    model.save(root / "bright.keras")
    scaled = x[:40] / np.float32(127.5) - 1
    export.to_tflite(
        model, root / "bright.tflite", mode="int8", io="uint8", data=scaled, verify=scaled,
        labels=["dark", "bright"], mean=127.5, std=127.5,
    )  # fmt: skip
    np.savez(root / "data.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    for name, row in (("dark", 0), ("bright", 1)):
        Image.fromarray(x[row]).resize((20, 20)).save(root / f"{name}.png")
    return root


@pytest.fixture
def tfkd(capsys):
    """Runs a command line in this process: (exit code, output or JSON, standard error)."""

    def run(*argv):
        capsys.readouterr()
        code = cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in argv and code in (0, 4) else out, err

    return run
