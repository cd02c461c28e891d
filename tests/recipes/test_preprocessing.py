"""Scaling of pixels: by name, and found from what the model was trained with."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd.recipes import scaling
from tfkd.recipes.data import open_data
from tfkd.recipes.preprocessing import scaling_for
from tfkd.recipes.scaling import Scaling, named

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
    assert scaling.from_json(found.to_json()) == found


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


def images_of(low, high, dtype="float32"):
    """The images with their 256 values spread from `low` to `high`."""
    return open_data(((X.astype("uint8") / 255 * (high - low) + low).astype(dtype), Y))


def test_what_is_no_pixel_stays():
    arrays = open_data((X.reshape(200, -1), Y))
    standardized = images_of(-1, 1)
    assert scaling_for(None, arrays).name == "none"
    found = scaling_for(brightness(0.0), standardized)
    assert (found.name, found.to_pixels) == ("none", None) and "floats from -" in found.why
    np.testing.assert_array_equal(found(standardized.train.x), standardized.train.x)
    with pytest.raises(ValueError, match="floats from -.*pass none if the model takes them as"):
        named("-1-1", standardized)


@pytest.mark.parametrize("name", ["0-255", "0-1", "-1-1", "imagenet", "1,2", "standardize"])
def test_floats_from_0_to_1_are_scaled_like_pixels(name):
    floats, pixels = images_of(0, 1), images_of(0, 255, "uint8")
    found = named(name, floats)
    # Rounded to four places of a pixel, or of a unit.
    tolerance = 1e-3 if name == "standardize" else 1e-5
    wanted = named(name, pixels)(pixels.train.x)
    np.testing.assert_allclose(found(floats.train.x), wanted, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(found(tf.constant(floats.train.x)), found(floats.train.x))
    # Images that are read from files afterwards are pixels.
    np.testing.assert_allclose(found(pixels.train.x), wanted, rtol=tolerance, atol=tolerance)
    assert scaling.from_json(found.to_json()) == found


def test_floats_that_stay_are_the_same_bits_and_known_as_pixels():
    for high, std in [(1, 255.0), (255, 1.0)]:
        data = images_of(0, high)
        found = named("none", data)
        np.testing.assert_array_equal(found(data.train.x), data.train.x)
        assert found.std == (std,)


def test_numbers_of_pytorch_are_of_pixels_from_0_to_1():
    found = named("0.485,0.456,0.406,0.229,0.224,0.225", DATA)
    assert "0..1" in found.why
    np.testing.assert_allclose(found.mean, scaling.NAMED["imagenet"][0], rtol=1e-6)
    np.testing.assert_allclose(found.std, scaling.NAMED["imagenet"][1], rtol=1e-6)


@pytest.mark.parametrize(
    ("high", "threshold", "name"),
    [
        (1, 120 / 255, "none"),
        (1, 120.0, "0-255"),
        (1, 120 / 127.5 - 1, "-1-1"),
        (255, 120.0, "none"),
        (255, 120 / 255, "0-1"),
        (255, 120 / 127.5 - 1, "-1-1"),
    ],
)
def test_accuracy_decides_for_floats_too(high, threshold, name):
    found = scaling_for(brightness(threshold), images_of(0, high))
    assert found.name == name and "floats from" in found.why


@pytest.mark.parametrize(
    ("high", "dtype", "name"),
    [
        (255, "uint8", "-1-1"),
        (255, "float32", "-1-1"),
        (255, "int32", "-1-1"),
        (1, "float32", "-1-1"),
        (1, "float64", "-1-1"),
        (16, "float32", "standardize"),
        (16, "uint8", "standardize"),
        (4000, "float32", "standardize"),
    ],
)
def test_a_new_network_gets_numbers_around_zero(high, dtype, name):
    data = images_of(0, high, dtype)
    found = scaling.for_new_network(data)
    scaled = found(data.train.x)
    assert found.name == name
    assert -4 < scaled.min() < -0.5 and 0.5 < scaled.max() < 4


def test_floats_for_a_model_that_rescales_pixels():
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), LAYERS.Rescaling(1 / 255), *brightness(120 / 255).layers[1:]]
    )
    for high, name in [(1, "0-255"), (255, "none")]:
        assert scaling_for(model, images_of(0, high)).name == name
    model.layers[-1].set_weights([np.zeros((3, 2)), np.zeros(2)])  # always wrong or right alike
    with pytest.warns(
        UserWarning, match="from .* to .*multiplies them by 0.00392, as if .* to 255"
    ):
        found = scaling_for(model, images_of(0, 1))
    assert found.name == "none" and "better than chance" in found.why
