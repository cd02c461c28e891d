"""Scaling of pixels: by name, and found from what the model was trained with."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd.recipes import preprocessing
from tfkd.recipes.data import open_data
from tfkd.recipes.preprocessing import Scaling, named, scaling_for

RANDOM = np.random.default_rng(0)
Y = np.arange(200) % 2
# Dark and bright images.
X = np.clip(RANDOM.normal(90 + 60 * Y[:, None, None, None], 25, (200, 4, 4, 3)), 0, 255)
DATA = open_data((X.astype("uint8"), Y))
LAYERS = keras.layers


def brightness(threshold):
    """A classifier that compares the mean of its input with a threshold."""
    image = keras.Input((4, 4, 3))
    mean = LAYERS.Dense(2, kernel_initializer="zeros", name="logits")
    model = keras.Model(image, mean(LAYERS.GlobalAveragePooling2D()(image)))
    mean.set_weights([np.float32([[-1, 1]] * 3), np.float32([3 * threshold, -3 * threshold])])
    return model


@pytest.mark.parametrize(
    ("name", "pixels"), [("none", 255.0), ("0-1", 1.0), ("-1-1", 1.0), ("127.5,255", 0.5)]
)
def test_named_scalings_take_pixels(name, pixels):
    images = np.full((1, 2, 2, 3), 255, "uint8")
    scaled = named(name)(images)
    assert scaled.dtype == np.float32 and np.all(scaled == pixels)
    np.testing.assert_array_equal(named(name)(tf.constant(images)), scaled)


def test_numbers_by_channel():
    found = named("1,2,3,4,5,6", DATA)
    assert (found.mean, found.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert preprocessing.from_json(found.to_json()) == found


@pytest.mark.parametrize("name", ["imagnet", "1,2,3", "1,0", "1,x", "nan,1", "1,2,3,4"])
def test_wrong_scalings(name):
    with pytest.raises(ValueError, match="`preprocess`"):
        named(name, DATA)


def test_standardize_is_by_channel():
    found = named("standardize", DATA)
    scaled = found(DATA.train.x)
    np.testing.assert_allclose(scaled.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(axis=(0, 1, 2)), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("threshold", "name"), [(120.0, "none"), (120 / 255, "0-1"), (120 / 127.5 - 1, "-1-1")]
)
def test_accuracy_decides(threshold, name):
    found = scaling_for(brightness(threshold), DATA)
    assert found.name == name
    assert "accuracy on 144 training images" in found.why  # all there are: 200 less both parts


def test_a_model_that_scales_itself_takes_raw_pixels():
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, brightness(0.1)(LAYERS.Rescaling(1 / 255)(image)))
    assert scaling_for(model, DATA) == Scaling("none", why="the model scales pixels itself")


def test_batch_normalization_decides_where_labels_cannot():
    image = keras.Input((4, 4, 3))
    norm = LAYERS.BatchNormalization()
    x = norm(LAYERS.Conv2D(8, 3)(image))
    model = keras.Model(image, LAYERS.GlobalAveragePooling2D()(x))  # 8 outputs, and no classes
    conv = model.layers[1]
    values = conv(named("-1-1")(DATA.train.x)).numpy()
    axes = (0, 1, 2)
    norm.set_weights([np.ones(8), np.zeros(8), values.mean(axis=axes), values.var(axis=axes)])
    found = scaling_for(model, DATA)
    assert found.name == "-1-1" and "statistics of the batch normalization" in found.why


def test_an_untrained_model_gets_standardized_images():
    image = keras.Input((4, 4, 3))
    x = LAYERS.BatchNormalization()(LAYERS.Conv2D(8, 3)(image))
    model = keras.Model(image, LAYERS.GlobalAveragePooling2D()(x))
    assert scaling_for(model, DATA).name == "standardize"


def test_what_is_no_pixel_stays():
    arrays = open_data((X.reshape(200, -1), Y))
    floats = open_data((X.astype("float32"), Y))
    assert scaling_for(None, arrays).name == "none"
    assert "float already, from 0 to 231" in scaling_for(brightness(120.0), floats).why
    assert scaling_for(brightness(120.0), floats, "0-1").std == (255.0,)


def test_floats_for_a_model_that_rescales_pixels_are_told():
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), LAYERS.Rescaling(1 / 255), *brightness(0.5).layers[1:]]
    )
    small = open_data(((X / 255).astype("float32"), Y))
    with pytest.warns(
        UserWarning, match="from .* to .*multiplies them by 0.00392, as if .* to 255"
    ):
        found = scaling_for(model, small)
    assert found.name == "none" and "float already, from 0" in found.why
    large = open_data((X.astype("float32"), Y))
    scaling_for(model, large)  # no warning, which the tests take for an error
    scaling_for(brightness(0.5), small)
