"""Data sets from every source, and what they refuse."""

import sys
import warnings

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfkd import data
from tfkd.data import folder as folder_module

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (12, 5, 4, 3)).astype(np.uint8)
Y = np.arange(12) % 3


def write_npz(path, **changes):
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:6], "y_test": Y[:6], **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def write_images(root, classes=("cat", "dog"), count=5, size=(6, 8), mode="RGB"):
    """PNG files of size (height, width), each of one colour; returns root."""
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = Image.new("L", size[::-1], index * 100 + i).convert(mode)
            image.save(root / name / f"{i}.png")
    return root


# The data set itself.


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_moments_and_preprocess_against_numpy(kind):
    x = X if kind == "uint8" else (X / 255).astype(np.float32)
    unit = X.astype(np.float64) / 255
    dataset = data.Dataset(x, Y, x, Y)
    np.testing.assert_allclose(dataset.mean, unit.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(dataset.std, unit.std((0, 1, 2)), atol=1e-6)
    got = dataset.preprocess(x[:5]).numpy()
    want = (unit[:5] - unit.mean((0, 1, 2))) / unit.std((0, 1, 2))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_moments_use_the_training_part_alone_and_every_chunk_of_it():
    x = RNG.integers(0, 256, (2500, 2, 2, 1)).astype(np.uint8)
    y = np.arange(2500) % 2
    dataset = data.Dataset(x, y, np.zeros_like(x[:4]), y[:4])
    np.testing.assert_allclose(dataset.mean, (x / 255.0).mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(dataset.std, (x / 255.0).std((0, 1, 2)), atol=1e-6)


def test_a_constant_channel_stays_finite():
    dataset = data.Dataset(np.full_like(X, 51), Y, X, Y)
    np.testing.assert_allclose(dataset.std, 0, atol=1e-7)
    np.testing.assert_allclose(dataset.preprocess(np.full_like(X, 51)), 0, atol=1e-6)


def test_preprocess_in_batches():
    dataset = data.Dataset(X, Y, X, Y)
    batch, _ = next(iter(data.batches(X, Y, 12, preprocess=dataset.preprocess)))
    np.testing.assert_allclose(batch.numpy().mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(batch.numpy().std((0, 1, 2)), 1, atol=1e-5)


def test_what_is_converted():
    dataset = data.Dataset(
        X[..., 0].astype(np.int64), Y[:, None], X[..., 0].astype(np.uint16), Y, ["a", "b", "c"]
    )
    assert dataset.x_train.shape == (12, 5, 4, 1)
    assert dataset.x_train.dtype == dataset.x_test.dtype == np.uint8
    assert dataset.y_train.dtype == np.int32
    assert dataset.y_train.shape == (12,)
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.image_shape == (5, 4, 1)
    with pytest.raises(AttributeError):
        dataset.name = "other"


@given(train=st.integers(3, 12), test=st.integers(1, 12), seed=st.integers(0, 99))
def test_subset_is_balanced_ordered_and_nested(train, test, seed):
    marked = np.arange(12, dtype=np.uint8)[:, None, None]
    dataset = data.Dataset(marked, Y, marked, Y)
    small = dataset.subset(train, test, seed)
    kept = small.x_train.ravel().tolist()
    assert len(kept) == train
    assert len(small.x_test) == test
    assert kept == sorted(set(kept))
    np.testing.assert_array_equal(small.y_train, Y[kept])
    assert np.ptp(np.bincount(small.y_train, minlength=3)) <= 1
    assert np.ptp(np.bincount(small.y_test, minlength=3)) <= 1
    assert set(kept) <= set(dataset.subset(12, None, seed).x_train.ravel().tolist())
    if train < 12:
        assert set(kept) <= set(dataset.subset(train + 1, None, seed).x_train.ravel().tolist())
    assert kept == dataset.subset(train, test, seed).x_train.ravel().tolist()


def test_subset_refuses():
    dataset = data.digits()
    for options in ({"train": 9}, {"train": 100_000}, {"test": 0}, {"train": 20, "seed": -1}):
        with pytest.raises(ValueError, match="`(train|test|seed)`"):
            dataset.subset(**options)


# Digits.


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    dataset, bundled = data.digits(), load_digits()
    images = np.concatenate([dataset.x_train, dataset.x_test])
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    # Sorted rows: the same images with the same labels, whatever the order.
    labels = np.concatenate([dataset.y_train, dataset.y_test])
    got = np.c_[np.round(images.reshape(1797, 64) / 255 * 16), labels]
    want = np.c_[bundled.data, bundled.target]
    np.testing.assert_array_equal(got[np.lexsort(got.T)], want[np.lexsort(want.T)])
    assert dataset.num_classes == 10


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_digits_are_split_by_class(fraction):
    dataset = data.digits(fraction, seed=3)
    test, train = np.bincount(dataset.y_test), np.bincount(dataset.y_train)
    np.testing.assert_allclose(test / (test + train), fraction, atol=0.01)
    np.testing.assert_array_equal(dataset.x_test, data.digits(fraction, seed=3).x_test)
    assert not np.array_equal(dataset.y_test, data.digits(fraction, seed=4).y_test)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, "half", float("nan")])
def test_digits_refuse_a_fraction(fraction):
    with pytest.raises((TypeError, ValueError), match="`test_fraction`"):
        data.digits(fraction)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"tfkd\[demo\]"):
        data.digits()


# npz.


def test_npz(tmp_path):
    dataset = data.npz(write_npz(tmp_path / "toy.npz", y_train=Y[:, None].astype(np.uint8)))
    np.testing.assert_array_equal(dataset.x_train, X)
    np.testing.assert_array_equal(dataset.y_train, Y)
    np.testing.assert_array_equal(dataset.x_test, X[:6])
    assert dataset.name == "toy"


HALVES = X.astype(np.float32)
HALVES[3, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_test": None, "y_test": None}, "Missing: x_test, y_test"),
        ({"y_train": Y.astype(np.float32)}, "integer labels"),
        ({"y_train": Y + 1, "y_test": Y[:6] + 1}, r"Labels without an example: \[0\]"),
        ({"y_train": Y * 2}, r"Labels without an example: \[1, 3\]"),
        ({"y_train": Y - 1}, "labels from 0"),
        ({"y_test": Y[:6] + 1}, "`y_test`"),
        ({"y_train": Y[:5]}, "12 labels"),
        ({"y_train": np.eye(3)[Y]}, "One-hot"),
        ({"x_train": HALVES, "x_test": HALVES[:3]}, "Image 3 holds NaN"),
        ({"x_train": X.astype(int) * 3}, "0..255"),
        ({"x_train": X[:, 1:]}, "`x_test`"),
        ({"x_train": X.astype(np.float32)}, "`x_test`"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "at least one image"),
        ({"x_train": X[0, 0]}, "at least one image"),
        ({"x_train": X > 3}, "uint8 or float"),
        ({"y_train": np.array([None] * 12)}, "pickled objects"),
    ],
)
def test_npz_that_is_refused_with_its_path(tmp_path, changes, said):
    path = write_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises((TypeError, ValueError), match=said) as raised:
        data.npz(path)
    assert "bad.npz" in str(raised.value)


def test_npz_that_is_no_npz(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        data.npz(tmp_path / "none.npz")
    for content in (b"", b"text", b"PK\x03\x04 not really"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a \.npz file"):
            data.npz(tmp_path / "bad.npz")
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(ValueError, match="several arrays"):
        data.npz(tmp_path / "one.npy")
    whole = write_npz(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[:300] + b"\xff" * 60 + whole[360:])
    with pytest.raises(ValueError, match="readable arrays"):
        data.npz(tmp_path / "bad.npz")


# Image folders.


def test_folder_of_classes(tmp_path):
    dataset = data.image_folder(write_images(tmp_path), test_fraction=0.4)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (6, 8, 3)
    assert (len(dataset.x_train), len(dataset.x_test)) == (6, 4)
    seen = []
    for x, y in [(dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)]:
        np.testing.assert_array_equal(x[:, 0, 0, 0] // 100, y)
        seen += x[:, 0, 0, 0].tolist()
    assert sorted(seen) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]


@pytest.mark.parametrize("part", ["test", "val", "validation"])
def test_folder_that_is_split_already(tmp_path, part):
    write_images(tmp_path / "train", count=4, mode="L")
    write_images(tmp_path / part, classes=("dog",), count=3, mode="L")
    dataset = data.image_folder(tmp_path)
    assert dataset.image_shape == (6, 8, 1)
    assert (len(dataset.x_train), len(dataset.x_test)) == (8, 3)
    np.testing.assert_array_equal(dataset.y_test, [1, 1, 1])
    np.testing.assert_array_equal(dataset.x_test[:, 0, 0, 0], [0, 1, 2])


def test_a_class_may_be_called_train(tmp_path):
    write_images(tmp_path, classes=("plane", "train"))
    assert data.image_folder(tmp_path).class_names == ("plane", "train")


@pytest.mark.parametrize(
    ("mode", "alpha", "told"),
    [("RGBA", 0, 10), ("RGBA", 255, 0), ("LA", 254, 10), ("P", None, 10), ("RGB", None, 0)],
)
def test_transparency_that_is_dropped_is_told(tmp_path, mode, alpha, told):
    write_images(tmp_path)
    for file in tmp_path.rglob("*.png"):
        image = Image.open(file).convert(mode)
        if alpha is not None:
            image.putalpha(alpha)
        image.save(file, **({"transparency": image.getpixel((0, 0))} if mode == "P" else {}))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        data.image_folder(tmp_path)
        data.folder.read_image(file)
    said = [str(one.message) for one in seen if "transparent" in str(one.message)]
    wanted = [f"{told} of 10 images are transparent", "1 of 1 images are transparent"]
    assert len(said) == (2 if told else 0)
    assert all(text.startswith(start) for text, start in zip(said, wanted, strict=False))


def test_size_resizes_and_mixed_modes_become_rgb(tmp_path):
    write_images(tmp_path / "a", size=(6, 8), mode="L")
    write_images(tmp_path / "b", size=(10, 3), mode="RGBA")
    (tmp_path / "a" / "cat").rename(tmp_path / "cat")
    (tmp_path / "b" / "dog").rename(tmp_path / "dog")
    for name in ("a", "b"):
        for image in (tmp_path / name).rglob("*.png"):
            image.unlink()
        for empty in (tmp_path / name).iterdir():
            empty.rmdir()
        (tmp_path / name).rmdir()
    dataset = data.image_folder(tmp_path, size=(4, 5))
    assert dataset.image_shape == (4, 5, 3)
    # Images of one colour keep it, whatever the size.
    np.testing.assert_array_equal(dataset.x_train[:, 3, 4, 2] // 100, dataset.y_train)
    assert data.image_folder(tmp_path, size=7).image_shape == (7, 7, 3)
    with pytest.raises(ValueError, match="`size`.*differ in size") as raised:
        data.image_folder(tmp_path)
    assert "dog" in str(raised.value)


def test_other_files_and_hidden_ones_are_passed_over(tmp_path):
    write_images(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / ".git").mkdir()
    assert len(data.image_folder(tmp_path).x_train) == 8


def test_the_cameras_orientation_is_honoured(tmp_path):
    write_images(tmp_path, size=(6, 8))
    pixels = np.zeros((8, 6, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "cat" / "0.png", exif=exif)
    dataset = data.image_folder(tmp_path)
    images = np.concatenate([dataset.x_train, dataset.x_test])
    turned = images[(images == 255).any((1, 2, 3))]
    assert turned.shape == (1, 6, 8, 3)
    assert turned[0, 0, 7, 0] == 255


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        data.image_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="no sub-folder"):
        data.image_folder(tmp_path)
    write_images(tmp_path, classes=("cat",))
    with pytest.raises(ValueError, match="two or more classes"):
        data.image_folder(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match=r"images in every class.*dog"):
        data.image_folder(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "dog" / "only.png")
    with pytest.raises(ValueError, match="Class 1 has 1"):
        data.image_folder(tmp_path)
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(tmp_path / "dog" / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png"):
        data.image_folder(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 60])
def test_a_broken_image_is_named(tmp_path, kept):
    write_images(tmp_path, size=(40, 40))
    noise = RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    file = tmp_path / "dog" / "broken.png"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"broken\.png"):
        data.image_folder(tmp_path)


@pytest.mark.parametrize(("name", "dtype"), [("s.png", np.uint16), ("s.tiff", np.float32)])
def test_one_image_of_more_than_8_bits_is_refused(tmp_path, name, dtype):
    """Pillow would cut its values off at 255."""
    Image.fromarray(np.linspace(0, 60_000, 64).reshape(8, 8).astype(dtype)).save(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}.*8 bits per channel"):
        folder_module.read_image(tmp_path / name, 1)


def break_files(root, *names):
    for number, name in enumerate(names):
        file = root / name
        file.write_bytes(file.read_bytes()[: 40 if number % 2 else 0])  # a header, or nothing


@pytest.mark.parametrize("parts", [("",), ("train", "test")])
def test_all_broken_images_are_named_at_once_or_skipped(tmp_path, parts):
    for part in parts:
        write_images(tmp_path / part, size=(30, 30))
        break_files(tmp_path / part, "cat/1.png", "dog/0.png", "dog/4.png")
    Image.new("I;16", (30, 30)).save(tmp_path / parts[0] / "cat" / "0.png")
    with pytest.raises(ValueError, match='on_error="skip"') as caught:
        data.image_folder(tmp_path)
    named = [line for line in str(caught.value).split("\n") if ".png" in line]
    assert len(named) == 3 * len(parts) + 1
    assert any("0.png" in line and "8 bits" in line for line in named)

    with pytest.warns(UserWarning, match=f"{len(named)} of {10 * len(parts)} images"):
        found = data.image_folder(tmp_path, on_error="skip")
    left = [(2, 0), (3, 0), (4, 0), (101, 1), (102, 1), (103, 1)]  # (pixel, class)
    train = [*zip(found.x_train[:, 0, 0, 0].tolist(), found.y_train.tolist(), strict=True)]
    test = [*zip(found.x_test[:, 0, 0, 0].tolist(), found.y_test.tolist(), strict=True)]
    if len(parts) == 2:
        assert (sorted(train), sorted(test)) == (left, [(0, 0), *left])
    else:
        assert sorted(train + test) == left and {label for _, label in test} == {0, 1}


def test_skipping_leaves_no_class_without_an_image(tmp_path):
    write_images(tmp_path)
    break_files(tmp_path, *(f"dog/{i}.png" for i in range(5)))
    with pytest.warns(UserWarning, match="5 of 10"), pytest.raises(ValueError, match="dog"):
        data.image_folder(tmp_path, on_error="skip")
    break_files(tmp_path, *(f"cat/{i}.png" for i in range(5)))
    with pytest.raises(ValueError, match="10 of 10"):
        data.image_folder(tmp_path, on_error="skip")
    with pytest.raises(ValueError, match="`on_error`"):
        data.image_folder(tmp_path, on_error="ignore")


def test_want_of_memory_is_no_broken_image(tmp_path, monkeypatch):
    def decode(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(folder_module, "_decode", decode)
    with pytest.raises(MemoryError, match="no room"):
        data.image_folder(write_images(tmp_path), on_error="skip")


def test_many_broken_images_are_counted(tmp_path):
    write_images(tmp_path, count=30)
    break_files(tmp_path, *(f"dog/{i}.png" for i in range(25)))
    with pytest.raises(ValueError, match="25 of 60") as caught:
        data.image_folder(tmp_path)
    assert "and 5 more" in str(caught.value) and str(caught.value).count(".png") <= 40


def test_a_class_in_test_alone_is_refused(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", classes=("cat", "fish"))
    with pytest.raises(ValueError, match="fish"):
        data.image_folder(tmp_path)


@pytest.mark.parametrize("size", [0, -3, 2.5, (3,), (3, 4, 5), "32", (3, 0)])
def test_bad_size(tmp_path, size):
    with pytest.raises((TypeError, ValueError), match="`size`"):
        data.image_folder(write_images(tmp_path), size=size)


def test_many_files_show_progress_and_lose_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folder_module, "_LARGE", 5)
    shown = data.image_folder(write_images(tmp_path))
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    plain = data.image_folder(tmp_path)
    np.testing.assert_array_equal(shown.x_train, plain.x_train)
    assert capsys.readouterr().out == ""


# Keras's own, and `load`.


def test_keras_datasets_without_the_network(monkeypatch):
    packed = (X, Y[:, None]), (X[:6], Y[:6, None])
    monkeypatch.setattr(keras.datasets.cifar100, "load_data", lambda: packed)
    dataset = data.keras_dataset("cifar100")
    assert dataset.name == "cifar100"
    np.testing.assert_array_equal(dataset.y_test, Y[:6])


def test_a_failed_download_says_so(monkeypatch):
    def fail():
        raise Exception("URL fetch failure on https://example.org/mnist.npz")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    with pytest.raises(OSError, match="could not load 'mnist': URL fetch failure"):
        data.load("mnist")


def test_class_names_of_keras_fit(monkeypatch):
    y = np.arange(20) % 10
    x = np.zeros((20, 2, 2), np.uint8)
    for name, first in [("fashion_mnist", "T-shirt/top"), ("cifar10", "airplane"), ("mnist", "0")]:
        module = getattr(keras.datasets, name)
        monkeypatch.setattr(module, "load_data", lambda: ((x, y), (x, y)))
        dataset = data.load(name)
        assert dataset.class_names[0] == first
        assert len(dataset.class_names) == 10


def test_load_chooses(tmp_path):
    assert data.load("digits", seed=2).name == "digits"
    assert data.load(str(write_npz(tmp_path / "a.npz"))).name == "a"
    assert data.load(write_images(tmp_path / "pets"), size=4).image_shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("digit", ValueError, "Did you mean 'digits'"),
        ("cifar-10", ValueError, "Did you mean 'cifar10'"),
        ("nowhere/at/all", ValueError, "no file or folder"),
        ("", ValueError, "'digits', 'mnist'"),
        (__file__, ValueError, r"not a \.npz file"),
        ("none.npz", FileNotFoundError, "no file"),
        (None, TypeError, "a name or a path"),
        (3, TypeError, "a name or a path"),
    ],
)
def test_unknown_spec(spec, error, said):
    with pytest.raises(error, match=said):
        data.load(spec)


def test_keras_name_that_is_none():
    with pytest.raises(ValueError, match="Did you mean 'mnist'"):
        data.keras_dataset("mnst")
