"""Files in the format of COCO: what is read, and every fault with its line."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from tfkd import data

WIDTH, HEIGHT = 20, 10


class Files:
    """A good file of six images with gaps in the numbers, to put faults into."""

    def __init__(self, root):
        self.root = root
        (root / "images").mkdir()
        self.images, self.annotations = [], []
        for i in range(6):
            self.add_image(10 * i, f"{i}.png")
            self.annotate(10 * i, 90, [2, 1, 10, 5])
            self.annotate(10 * i, 4, [0, 0, 20, 10])
        self.categories = [{"id": 90, "name": "cat"}, {"id": 4, "name": "dog"}]

    def add_image(self, number, name):
        self.images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        image = Image.new("RGB", (WIDTH, HEIGHT), (number, 7, 9))
        image.save(self.root / "images" / name)

    def annotate(self, image, category, box, **extra):
        number = len(self.annotations)
        entry = {"id": number, "image_id": image, "category_id": category, "bbox": box, **extra}
        self.annotations.append(entry)

    def text(self):
        """The file with a line for each entry: annotation i in line 9 + i."""
        sections = []
        for name in ("images", "annotations", "categories"):
            entries = ",\n".join(json.dumps(entry) for entry in getattr(self, name))
            sections.append(f'"{name}": [\n{entries}]')
        return "{" + ",\n".join(sections) + "}"

    def write(self, name="pets.json", text=None):
        (self.root / name).write_text(self.text() if text is None else text, encoding="utf-8")
        return self.root / name

    def load(self, text=None, **options):
        path = self.write(text=text)
        return data.coco(path, self.root / "images", **{"size": (5, 8), **options})

    def faults(self, **options):
        """[(kind, line)] of the error."""
        with pytest.raises(data.AnnotationError) as caught:
            self.load(**options)
        assert {f.file for f in caught.value.findings} == {(self.root / "pets.json").as_posix()}
        return [(f.kind, f.line) for f in caught.value.findings if not f.is_note]


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def colours(images):
    return images[:, 0, 0, 0].tolist()


def test_one_file_that_is_split(files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = files.load(test_fraction=0.5, seed=1)
    assert (made.name, made.class_names, made.findings) == ("pets", ("dog", "cat"), ())
    assert made.x_train.shape == made.x_test.shape == (3, 5, 8, 3)
    assert sorted(colours(made.x_train) + colours(made.x_test)) == [0, 10, 20, 30, 40, 50]
    wanted = np.float32([[0.1, 0.1, 0.6, 0.6], [0, 0, 1, 1]])
    np.testing.assert_allclose(made.boxes_train, [wanted] * 3, atol=1e-7)
    assert made.classes_train.tolist() == [[1, 0]] * 3
    again = files.load(test_fraction=0.5, seed=1)
    assert colours(again.x_test) == colours(made.x_test)
    assert len({tuple(colours(files.load(seed=s, test_fraction=0.5).x_test)) for s in range(5)}) > 1


def test_two_files_that_number_their_categories_differently(files, tmp_path):
    other = Files(tmp_path / "images")
    other.categories = [{"id": 4, "name": "cat"}, {"id": 90, "name": "dog"}]
    path = other.write()
    made = files.load(test_path=path, test_images=other.root / "images")
    assert made.classes_train.tolist() == [[1, 0]] * 6
    assert made.classes_test.tolist() == [[0, 1]] * 6


def test_images_of_both_files_are_a_fault(files):
    path = files.write("again.json")
    with pytest.raises(data.AnnotationError, match="6 × in both parts"):
        files.load(test_path=path)


def test_some_categories_alone(files):
    made = files.load(class_names=("cat",), test_fraction=0.5)
    assert made.object_counts().tolist() == [1, 1, 1]
    assert [f.kind for f in made.findings] == ["other class"] * 6
    assert all(f.is_note for f in made.findings)
    with pytest.raises(ValueError, match="`class_names`.*Did you mean 'cat'"):
        files.load(class_names=("dog", "cta"))


def test_crowds_are_left_out_and_counted(files):
    files.annotate(0, 4, {"size": [10, 20]}, iscrowd=1)
    files.annotate(0, 4, [1, 1, 2, 2], iscrowd=0)
    made = files.load()
    assert made.object_counts("train").sum() + made.object_counts("test").sum() == 13
    assert [(f.kind, f.line) for f in made.findings] == [("crowd", 9 + 12)]


def test_an_image_without_objects_is_a_note(files):
    files.add_image(70, "empty.png")
    made = files.load(test_fraction=0.5)
    (note,) = made.findings
    assert (note.kind, note.line) == ("no object", 8)
    counts = np.concatenate([made.object_counts("train"), made.object_counts("test")])
    assert sorted(counts.tolist()) == [0, 2, 2, 2, 2, 2, 2]


FAULTS = {
    "no area": ({"bbox": [3, 3, 0, 4]}, "no area"),
    "hair": ({"bbox": [3, 3, 1e-8, 4]}, "no area"),
    "negative": ({"bbox": [3, 3, 2, -4]}, "no area"),
    "outside": ({"bbox": [3, 3, 2, 40]}, "outside"),
    "far off": ({"bbox": [30, 3, 2, 4]}, "off the image"),
    "three numbers": ({"bbox": [3, 3, 2]}, "missing value"),
    "no number": ({"bbox": [3, 3, 2, None]}, "missing value"),
    "no box": ({"bbox": None}, "missing value"),
    "infinite": ({"bbox": [3, 3, 2, float("inf")]}, "missing value"),
    "image": ({"image_id": 5}, "unknown image"),
    "no image": ({"image_id": None}, "missing value"),
    "category": ({"category_id": 1}, "unknown class"),
    "list": ({"category_id": [4]}, "missing value"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_an_annotation_has_its_line_and_can_be_skipped(files, name):
    changes, kind = FAULTS[name]
    files.annotations[3] |= changes
    assert files.faults() == [(kind, 9 + 3)]
    with pytest.warns(UserWarning, match=f"1 fault in the annotations: 1 × {kind}") as caught:
        made = files.load(on_error="skip", test_fraction=0.5)
    assert caught[0].filename == __file__
    counts = np.concatenate([made.object_counts("train"), made.object_counts("test")])
    assert sorted(counts.tolist()) == ([2] * 6 if kind == "outside" else [1, 2, 2, 2, 2, 2])


def test_faults_of_images_and_categories(files):
    (files.root / "images/1.png").unlink()
    (files.root / "images/2.png").write_bytes(b"no image")
    files.images[3]["width"] = 21
    files.images += [{"id": 70}, 3, {"id": 10, "file_name": "9.png"}]
    files.images.append({"id": 11, "file_name": "0.png"})
    files.categories += [{"id": 4, "name": "cow"}, {"id": 5, "name": "cat"}, {"id": 6}]
    assert files.faults() == [
        ("missing image", 3),
        ("undecodable image", 4),
        ("size", 5),
        ("missing value", 8),
        ("missing value", 9),
        ("listed twice", 10),
        ("listed twice", 11),
        ("listed twice", 28),
        ("listed twice", 29),
        ("missing value", 30),
    ]
    with pytest.warns(UserWarning, match="10 faults"):
        made = files.load(on_error="skip", test_fraction=0.5, seed=1)
    assert sorted(colours(made.x_train) + colours(made.x_test)) == [0, 40, 50]
    assert made.class_names == ("dog", "cat")


def test_the_error_names_index_and_id(files):
    files.annotations[3] |= {"bbox": [3, 3, 0, 4], "id": "abc"}
    with pytest.raises(data.AnnotationError) as caught:
        files.load()
    assert (
        "pets.json:12: expected a box with width and height above 0, "
        "received bbox [3, 3, 0, 4] in annotation 3 (id 'abc')"
    ) in str(caught.value)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('{"images": [\n{"id": 1,}]}', 2, "Expecting property name"),
        ('{"images": [],\n"annotations": []', 2, "Expecting ',' or '}'"),
        ('{"images": [0], "annotations": {}, "categories": []}', None, 'a list "annotations"'),
        ('{"images": [0], "annotations": []}', None, 'a list "categories", received none'),
        ('{"images": [], "annotations": [], "categories": []}', None, 'a list "images"'),
        ("[]", 1, "Expecting '{'"),
        ("", 1, "Expecting '{'"),
        ('{"images": ' + "[" * 100_000, None, "JSON"),
    ],
)
def test_broken_files(files, text, line, said, on_error):
    with pytest.raises(data.AnnotationError) as caught:
        files.load(text, on_error=on_error)
    assert [(f.kind, f.line) for f in caught.value.findings] == [("broken file", line)]
    assert said in str(caught.value)


def test_a_file_that_is_not_utf_8(files):
    path = files.write()
    path.write_bytes(path.read_bytes().replace(b"cat", b"c\xe4t"))
    with pytest.raises(data.AnnotationError, match="JSON in UTF-8"):
        data.coco(path, files.root / "images", 8)


def test_bad_arguments(files):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        data.coco(files.root / "none.json", files.root, 8)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        data.coco(files.write(), files.root / "none", 8)
    with pytest.raises(TypeError, match="`path`"):
        data.coco(3, files.root, 8)
    with pytest.raises(ValueError, match="`on_error`"):
        files.load(on_error="warn")
    with pytest.raises(ValueError, match="`size`"):
        files.load(size=-1)
    with pytest.raises(ValueError, match="leaves images of 6 on both sides"):
        files.load(test_fraction=1.0)


# Values as text, names in two forms, one image twice.


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("0", True), (0, True), (False, True), (None, True), ("false", True), (0.0, True),
        ("1", False), (1, False), (True, False), (" True ", False),
    ],
)  # fmt: skip
def test_iscrowd_in_every_way_it_is_written(files, value, kept):
    for entry in files.annotations:
        entry["iscrowd"] = 0
    files.annotations[3]["iscrowd"] = value
    made = files.load(test_fraction=0.5)
    counts = np.concatenate([made.object_counts("train"), made.object_counts("test")])
    assert counts.sum() == 11 + kept
    assert [f.kind for f in made.findings] == ([] if kept else ["crowd"])


@pytest.mark.parametrize("value", ["no", 2, "", [0], "00", -1])
def test_an_iscrowd_that_is_neither_is_a_fault(files, value):
    files.annotations[3]["iscrowd"] = value
    assert files.faults() == [("bad value", 9 + 3)]


def test_numbers_as_text(files):
    for image in files.images:
        image["width"] = str(image["width"])
    files.images[1]["id"] = "10"  # annotations say 10
    files.annotations[4]["image_id"] = "20"  # the image says 20
    files.categories[0]["id"] = "90"
    files.annotations[1]["category_id"] = " 4"
    for entry in files.annotations:
        entry["bbox"] = [str(side) for side in entry["bbox"]]
    made = files.load(test_fraction=0.5, seed=1)
    wanted = np.float32([[0.1, 0.1, 0.6, 0.6], [0, 0, 1, 1]])
    np.testing.assert_allclose(np.r_[made.boxes_train, made.boxes_test], [wanted] * 6, atol=1e-7)
    assert made.class_names == ("dog", "cat")


def test_numbers_that_are_none(files):
    files.images[2]["width"] = "20px"
    files.images[3]["height"] = True
    files.annotations[0]["bbox"] = [True, 1, 10, 5]
    files.annotations[1]["bbox"] = ["1_0", 1, 10, 5]
    files.images.append({"id": "0", "file_name": "again.png"})
    assert files.faults() == [
        ("size", 4),
        ("size", 5),
        ("listed twice", 8),
        ("missing value", 10),
        ("missing value", 11),
    ]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_data_set_without_any_object_left_is_refused(files, on_error):
    for entry in files.annotations:
        entry["iscrowd"] = 1
    with pytest.raises(data.AnnotationError, match="object of the training part is left: 12 × c"):
        files.load(on_error=on_error)


def test_boxes_in_fractions_of_the_image_are_refused(files):
    for entry in files.annotations:
        entry["bbox"] = [0.1, 0.2, 0.5, 0.8]
    with pytest.raises(ValueError, match="boxes in pixels.*pets.*fractions of the image"):
        files.load(on_error="skip")
    files.annotations[0]["bbox"] = [0.1, 0.2, 3, 4]
    assert len(files.load().x_train)


def test_a_file_without_objects_is_said(files):
    files.annotations.clear()
    with pytest.warns(UserWarning, match="no image of the (training|test) part has an obj") as said:
        made = files.load()
    assert len(said) == 2 and made.object_counts().sum() == 0


def test_names_in_two_unicode_forms(files):
    composed, apart = "K\xe4se", "Ka\u0308se"
    files.categories[0]["name"] = apart
    made = files.load(class_names=(composed, "dog"), test_fraction=0.5)
    assert made.class_names == (composed, "dog")
    assert made.object_counts().tolist() == [2, 2, 2]
    files.categories.append({"id": 5, "name": composed})
    assert files.faults() == [("listed twice", 9 + 12 + 3)]
    files.categories.pop()
    # On disk, and in folders of its own, it has the other form.
    (files.root / "images" / apart).mkdir()
    (files.root / "images/0.png").rename(files.root / "images" / apart / f"{apart}.png")
    files.images[0]["file_name"] = f"{composed}/{composed}.png"
    assert len(files.load(test_fraction=0.5).x_train) == 3


def test_the_same_image_in_both_parts_is_a_finding_that_is_said(files, tmp_path):
    other = Files(tmp_path / "images")
    for number, image in enumerate(other.images):
        Image.new("RGB", (WIDTH, HEIGHT), (number + 1, 8, 9)).save(
            other.root / "images" / image["file_name"]
        )
    Image.new("RGB", (WIDTH, HEIGHT), (30, 7, 9)).save(other.root / "images/4.png")
    path = other.write("other.json")
    said = "1 images of the test part are in the training part too, by content; the first: 4.png "
    with pytest.warns(UserWarning, match=said + "with the pixels of 3.png") as caught:
        made = files.load(test_path=path, test_images=other.root / "images")
    assert [warning.filename for warning in caught] == [__file__]
    assert [(f.kind, f.line, f.is_note) for f in made.findings] == [("same image", 6, True)]
    assert len(made.x_test) == 6


# Sizes that are not said, roots among the categories, names of files.


@pytest.mark.parametrize("side", [0, "", -1, None, "0", " ", -1.0, float("nan"), "null"])
def test_a_size_that_is_not_said(files, side):
    files.images[1]["width"] = files.images[1]["height"] = files.images[2]["height"] = side
    assert files.load().findings == ()
    files.images[1]["width"] = WIDTH + 1  # the other side says nothing
    assert files.faults() == [("size", 3)]


@pytest.mark.parametrize("side", ["wide", [], True, {}, float("inf")])
def test_a_size_that_is_no_number(files, side):
    files.images[1]["height"] = side
    assert files.faults() == [("size", 3)]


def category(number, name, parent=None):
    return {"id": number, "name": name} | ({"supercategory": parent} if parent else {})


ROOTS = {
    "without a word": [category(0, "dog"), category(4, "dog"), category(90, "cat")],
    "none above it": [category(0, "cat", "none"), category(90, "cat", "cat"), category(4, "dog")],
    "after its child": [category(90, "cat", "cat"), category(4, "dog", "cat"), category(91, "cat")],
    "text": [category("0", "dog"), category("4", "dog"), category("90", "cat")],
    "three deep": [category(0, "dog"), category(1, "dog"), category(4, "dog"), category(90, "cat")],
}


@pytest.mark.parametrize("name", ROOTS)
def test_a_root_that_bears_the_name_of_its_child(files, name):
    files.categories = ROOTS[name]
    made = files.load(test_fraction=0.5)
    assert (made.class_names, made.findings) == (("dog", "cat"), ())
    assert made.classes_train.tolist() == [[1, 0]] * 3


def test_objects_of_a_root_that_is_named_as_such_are_its_childs(files):
    files.categories = [category(90, "cat"), category(7, "cat", "cat"), category(4, "dog")]
    files.annotations[1]["category_id"] = 7
    made = files.load(test_fraction=0.5)
    assert (made.class_names, made.findings) == (("dog", "cat"), ())
    counts = [np.sum(classes == 1) for classes in (made.classes_train, made.classes_test)]
    assert sum(counts) == 7


def test_two_categories_of_one_name_that_both_have_objects_are_a_fault(files):
    files.categories.append(category(7, "cat", "tools"))
    files.annotations[1]["category_id"] = 7
    assert files.faults() == [("unknown class", 10), ("listed twice", 9 + 12 + 3)]


@pytest.mark.parametrize("absolute", [False, True])
def test_file_names_that_lead_out(files, absolute):
    outside = files.root / "outside.png"
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(outside)
    files.images[2]["file_name"] = str(outside) if absolute else "../outside.png"
    assert files.faults() == [("leads out", 4)]
    with pytest.warns(UserWarning, match=r"1 fault .* leads out \(image left out\)"):
        made = files.load(on_error="skip", test_fraction=0.4)
    assert sorted(colours(made.x_train) + colours(made.x_test)) == [0, 10, 30, 40, 50]
    files.images[2]["file_name"] = "../not there.png"
    assert files.faults() == [("leads out", 4)]
    files.images[2]["file_name"] = "../images/2.png"  # comes back in
    assert files.load().findings == ()


def test_links_are_followed_in_the_folder_alone(files):
    images, outside = files.root / "images", files.root / "outside"
    outside.mkdir()
    (images / "inside").mkdir()
    for name, place in (("1.png", images / "inside"), ("2.png", outside)):
        (images / name).rename(place / name)
        (images / name).symlink_to(place / name)
    (images / "folder").symlink_to(outside)
    files.images[3]["file_name"] = "folder/2.png"
    assert files.faults() == [("leads out", 4), ("leads out", 5)]
    (files.root / "link").symlink_to(images)
    del files.images[2:4], files.annotations[4:8]
    made = data.coco(files.write(), files.root / "link", 8)
    assert len(made.x_train) + len(made.x_test) == 4


def test_backslashes_in_file_names_get_a_hint(files):
    (files.root / "images/sub").mkdir()
    (files.root / "images/1.png").rename(files.root / "images/sub/1.png")
    files.images[1]["file_name"] = "sub\\1.png"
    files.images[2]["file_name"] = "..\\2.png"
    files.images[3]["file_name"] = "D:\\images\\3.png"
    with pytest.raises(data.AnnotationError) as caught:
        files.load()
    said = [f.received for f in caught.value.findings]
    assert [f.kind for f in caught.value.findings] == ["missing image"] * 3
    assert "Write sub/1.png, with / for each \\: that file is there" in said[0]
    assert "Write ../2.png, with / for each \\" in said[1] and "is there" not in said[1]
    assert "a path of Windows" in said[2]


def test_file_names_that_no_disk_has(files, tmp_path):
    """A link that leads to itself, a zero in a name: findings, as what is not there."""
    (files.root / "images/1.png").unlink()
    (files.root / "images/1.png").symlink_to("1.png")
    files.images[2]["file_name"] = "2\0.png"
    other = Files(tmp_path / "images")
    assert [line for _, line in files.faults()] == [3, 4]
    with pytest.raises(data.AnnotationError, match="2 faults|8 faults"):
        files.load(test_path=other.write("other.json"), test_images=other.root / "images")
