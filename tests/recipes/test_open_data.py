"""Data by path, by name and from Python."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tfkd import data
from tfkd.recipes import python_data
from tfkd.recipes.data import open_data

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 255, (60, 8, 8, 3)).astype("uint8")
Y = (np.arange(60) % 3).astype("int32")


def images(root, counts, size=(6, 6)):
    """Writes `counts` images of noise a class below each folder name."""
    from PIL import Image

    for name, count in counts.items():
        for label in ("cat", "dog"):
            folder = root / name / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = RANDOM.integers(0, 255, (*size, 3)).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{number}.png")


def counts(found):
    return [len(part) for part in (found.train, found.val, found.test)]


def test_a_folder_without_parts_is_split_and_says_so(tmp_path):
    images(tmp_path, {"": 20})
    said = []
    found = open_data(tmp_path, say=said.append)
    # Of each class 20 % to test; of the other 16, 1.6 to validate.
    assert (found.kind, counts(found)) == ("images", [28, 4, 8])
    assert found.class_names == ("cat", "dog") and found.example_shape == (6, 6, 3)
    (text,) = said
    assert "40 images in 2 classes (cat, dog), 6×6×3 uint8" in text
    assert "20% split off to test (seed 0)" in text and "held back to validate" in text


def test_a_folder_with_parts_keeps_them(tmp_path):
    images(tmp_path, {"train": 4, "valid": 3, "test": 2})
    found = open_data(tmp_path)
    assert counts(found) == [8, 6, 4]
    assert "test part from 'test', validation part of its own" in found.split
    again = open_data(tmp_path, size=4)
    assert again.val.x.shape == (6, 4, 4, 3)


def test_a_validation_folder_alone_is_the_test_part(tmp_path):
    images(tmp_path, {"train": 10, "val": 2})
    found = open_data(tmp_path)
    assert counts(found) == [18, 2, 4] and "test part from 'val'" in found.split


def test_the_parts_are_disjoint_and_depend_on_the_seed_alone():
    first, again = open_data("digits"), open_data("digits")
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != open_data("digits", seed=1).fingerprint
    source = first.source
    assert counts(first) == [1295, 143, 359]
    assert len(source.x_train) == 1295 and len(first.validating().x_test) == 143
    rows = {part.tobytes() for part in first.train.x}
    assert not rows & {x.tobytes() for x in first.val.x}


def test_npz_files(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X[:40], y_train=Y[:40], x_test=X[40:], y_test=Y[40:])
    assert counts(open_data(tmp_path / "a.npz", val_fraction=0.25)) == [30, 10, 20]
    parts = {"x_train": X[:30], "x_val": X[30:45], "x_test": X[45:]}
    labels = {"y_train": Y[:30], "y_val": Y[30:45, None], "y_test": Y[45:]}
    np.savez(tmp_path / "b.npz", **parts, **labels)
    found = open_data(tmp_path / "b.npz")
    assert counts(found) == [30, 15, 15]
    np.testing.assert_array_equal(found.val.y, Y[30:45])
    np.savez(tmp_path / "c.npz", x=X, y=Y)
    assert sum(counts(open_data(tmp_path / "c.npz"))) == 60


@pytest.mark.parametrize(
    "written",
    [lambda y: np.eye(2)[y], lambda y: y.astype("float32"), lambda y: np.eye(2, dtype=bool)[y],
     lambda y: y[:, None].astype("float64")],
)  # fmt: skip
@pytest.mark.parametrize("parts", ["train", "train, test", "train, val, test"])
def test_labels_of_npz_files_are_one_hot_or_floats(tmp_path, written, parts):
    y = Y % 2
    ends = {"train": slice(30), "val": slice(30, 45), "test": slice(45, 60)}
    arrays = {f"x_{part}": X[ends[part]] for part in parts.split(", ")}
    arrays |= {f"y_{part}": written(y[ends[part]]) for part in parts.split(", ")}
    np.savez(tmp_path / "a.npz", **arrays)
    found = open_data(tmp_path / "a.npz")
    kept = {x.tobytes(): label for x, label in zip(X, y, strict=True)}
    for part in (found.train, found.val, found.test):
        assert len(part.y) and [kept[x.tobytes()] for x in part.x] == part.y.tolist()


def test_a_validation_part_in_colour_beside_greyscale_is_told(tmp_path):
    from PIL import Image

    images(tmp_path, {"train": 4, "test": 2, "val": 2})
    for part in ("train", "test"):
        for file in (tmp_path / part).rglob("*.png"):
            Image.open(file).convert("L").save(file)
    with pytest.warns(UserWarning, match="in colour, and those of the training part are not"):
        found = open_data(tmp_path)
    assert found.example_shape == (6, 6, 1) and found.val.x.shape == (4, 6, 6, 1)


@pytest.mark.parametrize("part", ["val", "valid", "validation", "dev"])
def test_a_validation_part_of_npz_files_by_its_usual_names(tmp_path, part):
    arrays = {"x_train": X[:30], "y_train": Y[:30], "x_test": X[30:45], "y_test": Y[30:45]}
    held = {f"x_{part}": X[45:], f"y_{part}": Y[45:]}
    np.savez(tmp_path / "a.npz", **arrays, **held, class_names=["a", "b", "c"])
    found = open_data(tmp_path / "a.npz")
    assert counts(found) == [30, 15, 15] and found.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(found.val.x, X[45:])
    np.savez(tmp_path / "half.npz", **arrays, **{f"x_{part}": X[45:]})
    with pytest.raises(ValueError, match="both x_val and y_val"):
        open_data(tmp_path / "half.npz")


def test_arrays_of_npz_files_that_are_not_used_are_told(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y % 2 == 0, groups=Y)
    with pytest.warns(UserWarning, match="a.npz also holds groups, which is not used"):
        found = open_data(tmp_path / "a.npz")
    assert sum(counts(found)) == 60 and found.num_classes == 2


def test_labels_of_npz_files_that_are_no_classes(tmp_path):
    for labels, said in ((Y + 0.5, "class numbers"), (np.eye(3)[Y % 3] / 2, "one-hot")):
        np.savez(tmp_path / "a.npz", x_train=X, y_train=labels, x_test=X, y_test=labels)
        with pytest.raises(ValueError, match=f"`data`: .*{said}.*y_train of a.npz"):
            open_data(tmp_path / "a.npz")


def test_validation_examples_that_were_trained_on_are_told():
    with pytest.warns(UserWarning, match="2 of the 20 examples of the validation part") as told:
        open_data(((X[:20], Y[:20]), (X[18:38], Y[18:38]), (X[38:], Y[38:])))
    assert len(told) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda n: RANDOM.integers(0, 255, (n, 8, 8, 3)).astype("uint8"),
        lambda n: np.array([f"text {i}" for i in range(n)], object),
        lambda n: RANDOM.normal(size=(n, 4)).astype("float32"),
    ],
)
@pytest.mark.parametrize("times", [2, 5])
def test_copies_of_an_example_are_never_trained_on_and_held_back(make, times):
    x, y = make(60), np.arange(60) % 3
    order = RANDOM.permutation(40 * times)
    many = (np.concatenate([x[:40]] * times)[order], np.concatenate([y[:40]] * times)[order])
    found = open_data((many, (x[40:], y[40:])))
    key = (lambda e: e) if x.dtype == object else (lambda e: e.tobytes())
    trained, held = ([key(e) for e in part.x] for part in (found.train, found.val))
    assert not set(trained) & set(held) and len(trained) + len(held) == 40 * times
    assert len(held) == times * len(set(held)) and set(found.val.y) == {0, 1, 2}
    assert f"{40 * (times - 1)} copies" in found.split
    labels = dict(zip(map(key, x), y, strict=True))
    for part in (found.train, found.val):
        assert [labels[key(e)] for e in part.x] == part.y.tolist()


def test_a_class_of_copies_is_split_all_the_same_and_that_is_told():
    x, y = np.concatenate([X[:20], X[20:21], X[20:21]]), np.array([0, 1] * 10 + [2, 2])
    with pytest.warns(UserWarning, match="1 of the 3 examples of the validation part"):
        found = open_data(((x, y), (X[40:], Y[40:])))
    assert counts(found) == [19, 3, 20]


def test_a_class_of_one_example_is_named(tmp_path):
    images(tmp_path, {"train": 5, "test": 2})
    for number in range(1, 5):
        (tmp_path / "train" / "dog" / f"{number}.png").unlink()
    with pytest.raises(ValueError, match="received 1 of the class 'dog'"):
        open_data(tmp_path)


def test_arrays_of_images_are_resized_and_that_is_told():
    x = np.repeat(np.repeat(X, 2, axis=1), 2, axis=2)
    found = open_data((x, Y), size=8)
    assert found.example_shape == (8, 8, 3) and "resized from 16×16" in str(found)
    # Of 2×2 equal pixels, with antialiasing, mostly the pixel itself.
    small = {image.tobytes(): image for image in X}
    nearest = min(np.abs(found.test.x[0].astype(int) - image).mean() for image in small.values())
    assert nearest < 30
    assert found.source.x_train.shape[1:] == (8, 8, 3) and found.train.x.dtype == np.uint8


def test_texts(tmp_path):
    for name, rows in (("train", 20), ("dev", 4), ("test", 6)):
        lines = [f"{name} text {n}\t{'good' if n % 2 else 'bad'}" for n in range(rows)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    found = open_data(tmp_path)
    assert (found.kind, counts(found), found.class_names) == ("texts", [20, 4, 6], ("bad", "good"))
    assert "30 texts in 2 classes" in str(found)
    assert sum(counts(open_data(tmp_path / "train.tsv"))) == 20


def voc(root, parts):
    from PIL import Image

    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>6</xmax><ymax>6</ymax></bndbox>"
    text = f"<annotation><object><name>cat</name>{box}</object></annotation>"
    for part, count in parts.items():
        ids = [f"{part}{n}" for n in range(count)]
        (root / f"ImageSets/Main/{part}.txt").write_text("\n".join(ids))
        for name in ids:
            (root / f"Annotations/{name}.xml").write_text(text)
            pixels = RANDOM.integers(0, 255, (8, 8, 3)).astype("uint8")
            Image.fromarray(pixels).save(root / f"JPEGImages/{name}.png")


def test_boxes_in_voc_layout(tmp_path):
    voc(tmp_path, {"train": 5, "val": 2, "test": 3})
    found = open_data(tmp_path, size=16)
    assert (found.kind, counts(found), found.class_names) == ("boxes", [5, 2, 3], ("cat",))
    np.testing.assert_allclose(found.val.boxes[0, 0], [0.25, 0.25, 0.75, 0.75])
    assert found.validating().x_test.shape == (2, 16, 16, 3)
    with pytest.raises(ValueError, match=r"`size`.*--size=160"):
        open_data(tmp_path)


def coco(file, image_folder, count):
    from PIL import Image

    image_folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        pixels = RANDOM.integers(0, 255, (8, 8, 3)).astype("uint8")
        Image.fromarray(pixels).save(image_folder / f"{n}.png")
    entries = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(count)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [2, 2, 4, 4]} for n in range(count)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    file.write_text(json.dumps(entries))


@pytest.mark.parametrize("layout", ["one file", "coco", "roboflow"])
def test_boxes_in_coco_layouts(tmp_path, layout):
    if layout == "one file":
        coco(tmp_path / "annotations.json", tmp_path / "images", 10)
        wanted = [7, 1, 2]
    elif layout == "coco":
        for part, count in (("train2017", 6), ("val2017", 2)):
            coco(tmp_path / f"annotations/instances_{part}.json", tmp_path / part, count)
        wanted = [5, 1, 2]
    else:
        for part, count in (("train", 6), ("valid", 3), ("test", 2)):
            coco(tmp_path / part / "_annotations.coco.json", tmp_path / part, count)
        wanted = [6, 3, 2]
    found = open_data(tmp_path, size=8)
    assert (found.kind, counts(found)) == ("boxes", wanted)


@pytest.mark.parametrize("layout", ["voc", "coco"])
@pytest.mark.parametrize("faulty", ["train val test", "val", "train test"])
def test_faults_of_all_parts_are_told_at_once(tmp_path, layout, faulty):
    if layout == "voc":
        voc(tmp_path, {"train": 3, "val": 3, "test": 3})
        files = {part: tmp_path / f"Annotations/{part}1.xml" for part in faulty.split()}
        edit = ("<xmax>6</xmax>", "<xmax>2</xmax>")
    else:
        for part in ("train", "valid", "test"):
            coco(tmp_path / part / "_annotations.coco.json", tmp_path / part, 3)
        folders = faulty.replace("val", "valid").split()
        files = {part: tmp_path / part / "_annotations.coco.json" for part in folders}
        edit = ("[2, 2, 4, 4]", "[2, 2, 0, 4]")
    for file in files.values():
        file.write_text(file.read_text().replace(*edit, 1))
    count = len(files)
    with pytest.raises(ValueError, match=f"{count} faults? in the annotations") as caught:
        open_data(tmp_path, size=8)
    assert str(caught.value).count("expected a box") == count
    assert "--on_error=skip" in str(caught.value)


@pytest.mark.parametrize(
    ("made", "kind", "wanted"),
    [
        (lambda: (X, Y), "images", [42, 6, 12]),
        (lambda: (X, np.eye(3)[Y]), "images", [42, 6, 12]),
        (lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(16), "images", [42, 6, 12]),
        (lambda: tf.data.Dataset.from_tensor_slices((X, tf.one_hot(Y, 3))), "images", [42, 6, 12]),
        (lambda: ((X[:40], Y[:40]), (X[40:], Y[40:])), "images", [37, 3, 20]),
        (
            lambda: {
                "train": (X[:30], Y[:30]),
                "val": (X[30:40], Y[30:40]),
                "test": (X[40:], Y[40:]),
            },
            "images",
            [30, 10, 20],
        ),
        (lambda: (X.reshape(60, -1) / 255.0, Y), "arrays", [42, 6, 12]),
        (lambda: (np.array([f"text {n}" for n in range(60)]), Y), "texts", [42, 6, 12]),
        (lambda: data.Dataset(X[:40], Y[:40], X[40:], Y[40:]), "images", [37, 3, 20]),
    ],
    ids=["pair", "one-hot", "batched", "unbatched", "parts", "dict", "arrays", "texts", "data set"],
)
def test_what_a_function_returns(made, kind, wanted):
    found = open_data(made())
    assert (found.kind, counts(found)) == (kind, wanted)


def test_a_function_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy_source.py").write_text(
        "import numpy as np\n"
        "def load():\n    return np.zeros((40, 2)), np.arange(40) % 2\n"
        "def fails():\n    raise OSError('no such disk')\n"
    )
    assert counts(open_data("toy_source:load")) == [28, 4, 8]
    for name, said in [
        ("toy_source:lod", "Did you mean 'load'"),
        ("toy_source:fails", "OSError: no such disk"),
        ("no_such_source:load", "No module named 'no_such_source'"),
    ]:
        with pytest.raises(ValueError, match=said):
            open_data(name)


def test_wrong_forms_from_python():
    for made, said in [
        (tf.data.Dataset.from_tensor_slices((X, Y)).repeat(), "Leave out its repeat"),
        (tf.data.Dataset.from_tensor_slices(X), "pairs"),
        ((X, Y[:5]), "as many labels as examples"),
        ((X, Y / 2), "class numbers"),
        ({"train": (X, Y)}, '"train", "test"'),
        (42, "tf.data.Dataset of such pairs"),
    ]:
        with pytest.raises(ValueError, match=said):
            python_data.split(made, "toy", 0.2, 0)


def test_data_that_cannot_be_used(tmp_path):
    images(tmp_path / "parts", {"train": 1, "test": 1})
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("nothing")
    np.savez(tmp_path / "one.npz", x=X, y=0 * Y)
    broken = tmp_path / "broken"
    images(broken, {"": 3})
    (broken / "cat" / "0.png").write_text("nothing")
    for name, error, said in [
        ("emty", FileNotFoundError, "Did you mean 'empty'"),
        ("nothing at all", FileNotFoundError, "module:function"),
        ("empty", ValueError, "is empty"),
        ("notes.txt", ValueError, "COCO .json file"),
        ("one.npz", ValueError, "two or more classes"),
        ("parts", ValueError, "validation part can't be held back.*at least two examples"),
        ("broken", ValueError, "(?s)1 of .*on_error.*0.png"),
    ]:
        with pytest.raises(error, match=said) as caught:
            open_data(tmp_path / name)
        assert "`path`" not in str(caught.value)


def test_errors_of_files_name_what_the_caller_gave(tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n")
    np.savez(tmp_path / "wrong.npz", a=X, b=Y)
    (tmp_path / "no.npz").write_text("nothing")
    for name in ("a.tsv", "wrong.npz", "no.npz"):
        with pytest.raises(ValueError, match="^`data`: expected") as caught:
            open_data(tmp_path / name)
        assert "`path`" not in str(caught.value)


@pytest.mark.parametrize("columns", [("said", "mood"), ("2", "1"), (2, 1)])
def test_columns_of_a_table_by_name_or_number(tmp_path, columns):
    rows = [f"{n}\t{'good' if n % 2 else 'bad'}\tfilm {n}" for n in range(20)]
    head = ["id\tmood\tsaid"] if columns[0] == "said" else []
    (tmp_path / "a.tsv").write_text("\n".join([*head, *rows]))
    found = open_data(tmp_path / "a.tsv", columns=columns)
    assert found.kind == "texts" and found.class_names == ("bad", "good")
    texts = [*found.train.x, *found.val.x, *found.test.x]
    assert sorted(map(str, texts)) == sorted(f"film {n}" for n in range(20))


def test_columns_are_for_tables(tmp_path):
    with pytest.raises(ValueError, match="`columns`: expected none for digits.*for .tsv files"):
        open_data("digits", columns=(0, 1))
    (tmp_path / "a.tsv").write_text("\n".join(f"x{n}\t{n % 2}\t{n}" for n in range(20)))
    with pytest.raises(ValueError, match="`columns`: .*'mood'"):
        open_data(tmp_path / "a.tsv", columns=("mood", "1"))
