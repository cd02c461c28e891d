"""Folders in the layout of PASCAL VOC: what is read, and every fault with its line."""

import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from tfkd import data

WIDTH, HEIGHT = 20, 10
GOOD = ("cat", (2, 1, 12, 6))


def xml(*objects, size=(WIDTH, HEIGHT), extra=""):
    """An annotation; object i begins in line 3 + 5 i, its name and box one and two lines below."""
    text = "<annotation>\n"
    text += f"<size><width>{size[0]}</width><height>{size[1]}</height></size>\n" if size else "\n"
    for name, (x1, y1, x2, y2) in objects:
        text += f"<object>\n<name>{name}</name>\n<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>\n"
        text += f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>\n{extra}</object>\n"
    return text + "</annotation>\n"


def colour(key):
    return (sum(map(ord, key)) % 200, 7, 9)


class Folder:
    """A VOC folder with three good images a part, to put faults into."""

    def __init__(self, root):
        self.root = root
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / part).mkdir(parents=True)
        self.lists = {"train": ["a", "b", "c"], "test": ["x", "y", "z"]}
        for key in "abcxyz":
            self.annotate(key, xml(GOOD, ("dog", (0, 0, 20, 10))))
            self.paint(key)

    def annotate(self, key, content):
        mode = "wb" if isinstance(content, bytes) else "w"
        with open(self.root / f"Annotations/{key}.xml", mode) as file:
            file.write(content)

    def paint(self, key, size=(WIDTH, HEIGHT), ending=".png"):
        Image.new("RGB", size, colour(key)).save(self.root / f"JPEGImages/{key}{ending}")

    def load(self, **options):
        for name, keys in self.lists.items():
            text = "\n".join(keys) + "\n"
            (self.root / f"ImageSets/Main/{name}.txt").write_text(text, encoding="utf-8")
        return data.voc(self.root, **{"size": (5, 8), **options})

    def faults(self, **options):
        """[(kind, file, line)] of the error, after a look at it as a whole."""
        with pytest.raises(data.AnnotationError) as caught:
            self.load(**options)
        assert isinstance(caught.value, ValueError)
        return [(f.kind, f.file, f.line) for f in caught.value.findings if not f.is_note]

    def skip(self, **options):
        """The data set without what is faulty."""
        with pytest.warns(UserWarning, match="faults? in the annotations") as caught:
            made = self.load(on_error="skip", **options)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        return made


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "pets")


def test_a_good_folder(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = folder.load()
    assert (made.name, made.class_names, made.findings) == ("pets", ("cat", "dog"), ())
    assert made.x_train.shape == made.x_test.shape == (3, 5, 8, 3)
    assert [tuple(image[0, 0]) for image in made.x_train] == [colour(key) for key in "abc"]
    assert [tuple(image[2, 5]) for image in made.x_test] == [colour(key) for key in "xyz"]
    wanted = np.float32([[0.1, 0.1, 0.6, 0.6], [0, 0, 1, 1]])
    np.testing.assert_allclose(made.boxes_train, [wanted] * 3, atol=1e-7)
    assert made.classes_test.tolist() == [[0, 1]] * 3


def test_images_are_resized_bilinearly(folder):
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder.root / "JPEGImages/b.png")
    made = folder.load(size=6)
    np.testing.assert_array_equal(made.x_train[1], image.resize((6, 6), Image.BILINEAR))


def test_classes_in_an_order_of_ones_own(folder):
    made = folder.load(class_names=("dog", "bird", "cat"))
    assert made.classes_train.tolist() == [[2, 0]] * 3
    assert made.num_classes == 3


def test_a_part_of_one_list_as_test_part(folder):
    folder.lists["all"] = list("abcxyz")
    made = folder.load(train="all", test=None, test_fraction=1 / 3, seed=3)
    again = folder.load(train="all", test=None, test_fraction=1 / 3, seed=3)
    np.testing.assert_array_equal(made.x_train, again.x_train)
    colours = [tuple(image[0, 0]) for image in (*made.x_train, *made.x_test)]
    assert sorted(colours) == sorted(colour(key) for key in "abcxyz")
    assert len(made.x_test) == 2
    with pytest.raises(ValueError, match="leaves images of 6 on both sides"):
        folder.load(train="all", test=None, test_fraction=0.01)


def test_an_image_without_objects_is_a_note(folder):
    folder.annotate("b", xml())
    made = folder.load()
    assert made.object_counts().tolist() == [2, 0, 2]
    (note,) = made.findings
    assert (note.kind, note.file, note.line, note.is_note) == (
        "no object", "Annotations/b.xml", 1, True,
    )  # fmt: skip


def test_training_images_without_a_file_can_be_unlabelled(folder):
    (folder.root / "Annotations/b.xml").unlink()
    made = folder.load(unlabelled=True)
    assert made.classes_train.tolist() == [[0, 1], [-2, -2], [0, 1]]
    assert tuple(made.x_train[1, 0, 0]) == colour("b")
    assert folder.faults() == [("no annotation", "ImageSets/Main/train.txt", 2)]
    (folder.root / "Annotations/x.xml").unlink()
    assert folder.faults(unlabelled=True) == [("no annotation", "ImageSets/Main/test.txt", 1)]


def test_difficult_objects_and_parts_of_objects(folder):
    part = "<part>\n<name>tail</name><bndbox><xmin>1</xmin></bndbox></part>"
    folder.annotate("b", xml(GOOD, extra=f"<difficult>1</difficult>{part}\n"))
    assert folder.load().object_counts().tolist() == [2, 1, 2]
    made = folder.load(difficult=False)
    assert made.object_counts().tolist() == [2, 0, 2]
    assert [f.kind for f in made.findings] == ["no object", "difficult"]
    head, _, *rows = str(made.findings).splitlines()
    assert head.split() == ["file", "line", "kind", "expected", "received", "done"]
    assert [row.split()[0] for row in rows] == ["Annotations/b.xml"] * 2
    assert rows[0].endswith("kept, an image without objects") and rows[1].endswith("left out")
    found = made.findings.to_dict()["findings"]
    assert [f["kind"] for f in found] == ["no object", "difficult"]


def test_the_file_name_in_the_annotation_and_other_endings(folder):
    (folder.root / "JPEGImages/b.png").rename(folder.root / "JPEGImages/photo 1.png")
    text = xml(GOOD).replace("<size>", "<filename>photo 1.png</filename><size>")
    folder.annotate("b", text)
    folder.paint("c", ending=".jpg")  # beside c.png: taken first
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(folder.root / "JPEGImages/c.png")
    made = folder.load()
    assert tuple(made.x_train[1, 0, 0]) == colour("b")
    assert made.x_train[2].max() < 255


def test_annotations_without_a_size_and_turned_images(folder):
    folder.annotate("a", xml(GOOD, size=None))
    upright = Image.new("RGB", (HEIGHT, WIDTH), "red")
    upright.paste("blue", (0, 0, HEIGHT, HEIGHT))
    exif = upright.getexif()
    exif[0x0112] = 6  # show it turned clockwise: the blue half comes to the right
    upright.save(folder.root / "JPEGImages/b.png", exif=exif)
    made = folder.load()
    assert made.x_train[1, 0, 0].tolist() == [255, 0, 0]
    assert made.x_train[1, 0, -1].tolist() == [0, 0, 255]


def box(*corners, name="cat"):
    return xml(GOOD, (name, corners))


FAULTS = {
    "broken": ("<annotation>\n<object>\n</annotation>", "broken file", 3, None),
    "not xml": (b"\x00\x01", "broken file", 1, None),
    "encoding": (
        b"<?xml version='1.0' encoding='nonsense'?>\n<annotation/>",
        "broken file",
        1,
        None,
    ),
    "other root": ("<html></html>", "broken file", 1, None),
    "size": (xml(GOOD, size=(10, 20)), "size", 2, None),
    "one side": (xml(GOOD, size=("", 11)), "size", 2, None),
    "size in words": (xml(GOOD, size=("wide", 10)), "size", 2, None),
    "size with a unit": (xml(GOOD, size=(20, "10 px")), "size", 2, None),
    "no name": (xml(GOOD).replace("<name>cat</name>", ""), "missing value", 3, 0),
    "blank name": (xml(("", GOOD[1]), GOOD), "missing value", 3, 1),
    "no box": (xml(GOOD).replace("bndbox", "box"), "missing value", 3, 0),
    "no xmax": (xml(GOOD).replace("xmax", "xmas"), "missing value", 5, 0),
    "no number": (box(1, "2 px", 3, 4), "missing value", 10, 1),
    "infinite": (box(1, 2, 3, "inf"), "missing value", 11, 1),
    "no width": (box(5, 2, 5, 8), "no area", 10, 1),
    "turned round": (box(5, 8, 9, 2), "no area", 10, 1),
    "outside": (box(-1.5, 2, 5, 8), "outside", 10, 2),
    "below": (box(1, 2, 5, 12), "outside", 10, 2),
    "far off": (box(30, 2, 35, 8), "off the image", 10, 1),
    "far below": (box(1, 30, 5, 35), "off the image", 10, 1),
    "unknown": (xml(("cow", (1, 1, 2, 2)), GOOD), "unknown class", 4, 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_line_and_can_be_skipped(folder, name):
    content, kind, line, left = FAULTS[name]
    folder.annotate("b", content)
    names = {"class_names": ("cat", "dog")}
    assert folder.faults(**names) == [(kind, "Annotations/b.xml", line)]
    made = folder.skip(**names)
    assert made.object_counts().tolist() == ([2, 2] if left is None else [2, left, 2])
    assert [f.kind for f in made.findings if not f.is_note] == [kind]


def test_a_pixel_outside_is_clipped_without_a_word(folder):
    folder.annotate("b", xml(("cat", (-1, 0, 21, 11))))
    made = folder.load()
    assert made.findings == ()
    assert made.boxes_train[1, 0].tolist() == [0, 0, 1, 1]


def test_a_box_that_is_outside_in_part_is_cut(folder):
    folder.annotate("b", xml(("cat", (10, 5, 40, 15))))
    assert folder.skip().boxes_train[1, 0].tolist() == [0.5, 0.5, 1, 1]


def test_faults_of_images_and_lists(folder):
    (folder.root / "JPEGImages/b.png").unlink()
    (folder.root / "JPEGImages/y.png").write_bytes(b"\x89PNG no image")
    folder.lists = {"train": ["a", "", "b", "c", "a", "nobody"], "test": ["c", "x", "y"]}
    assert folder.faults() == [
        ("missing image", "Annotations/b.xml", 1),
        ("in both parts", "Annotations/c.xml", 1),
        ("undecodable image", "Annotations/y.xml", 1),
        ("listed twice", "ImageSets/Main/train.txt", 5),
        ("no annotation", "ImageSets/Main/train.txt", 6),
    ]
    made = folder.skip()
    assert [tuple(image[0, 0]) for image in made.x_train] == [colour("a"), colour("c")]
    assert [tuple(image[0, 0]) for image in made.x_test] == [colour("x")]


def test_images_of_sixteen_bits_are_refused(folder):
    Image.new("I;16", (WIDTH, HEIGHT)).save(folder.root / "JPEGImages/b.png")
    assert folder.faults() == [("undecodable image", "Annotations/b.xml", 1)]


def test_the_error_says_all_that_is_needed(folder):
    folder.annotate("a", box(5, 2, 5, 8))
    folder.annotate("b", xml(GOOD, ("dgo", (1, 1, 2, 2))))
    with pytest.raises(data.AnnotationError) as caught:
        folder.load(class_names=("cat", "dog"))
    said = str(caught.value)
    assert said.startswith("pets: 2 faults in the annotations: ")
    assert "1 × no area (object left out)" in said
    assert (
        "Annotations/a.xml:10: expected a box with width and height above 0, "
        "received xmin 5, ymin 2, xmax 5, ymax 8"
    ) in said
    assert (
        "Annotations/b.xml:9: expected one of cat, dog, received 'dgo'. Did you mean 'dog'?" in said
    )
    assert 'on_error="skip"' in said
    assert pickle.loads(pickle.dumps(caught.value)).findings == caught.value.findings


def test_the_error_lists_some_and_counts_the_rest(folder):
    folder.annotate("a", xml(*[("cat", (5, 2, 5, 8))] * 33))
    with pytest.raises(data.AnnotationError, match="33 × no area") as caught:
        folder.load()
    assert str(caught.value).count("Annotations/a.xml:") == 20
    assert "and 13 more" in str(caught.value)
    assert len(caught.value.findings) == 33


def test_a_part_without_any_image_left_is_an_error_even_when_skipping(folder):
    for key in "xyz":
        (folder.root / f"JPEGImages/{key}.png").unlink()
    with pytest.raises(data.AnnotationError, match="3 × missing image"):
        folder.load(on_error="skip")


def test_missing_folders_and_lists(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        data.voc(tmp_path / "nowhere", 8)
    with pytest.raises(FileNotFoundError, match="JPEGImages"):
        data.voc(tmp_path, 8)
    folder.load()
    with pytest.raises(FileNotFoundError, match="Did you mean 'train'"):
        folder.load(train="trian")
    (folder.root / "ImageSets/Main/empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="an empty file"):
        folder.load(test="empty")
    (folder.root / "ImageSets/Main/odd.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        folder.load(test="odd")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"size": 0}, ValueError, "`size`"),
        ({"size": (1, 2, 3)}, ValueError, r"\(height, width\)"),
        ({"size": "big"}, ValueError, "`size`"),
        ({"class_names": "cat"}, TypeError, "`class_names`"),
        ({"class_names": ()}, ValueError, "at least one name"),
        ({"class_names": ("a", "a")}, ValueError, "each once"),
        ({"on_error": "ignore"}, ValueError, "`on_error`"),
        ({"train": 3}, TypeError, "the name of a list"),
    ],
)
def test_bad_arguments(folder, options, error, said):
    with pytest.raises(error, match=said):
        folder.load(**options)


# Names in two forms, values as text, one image twice.


def test_names_in_two_unicode_forms(folder):
    """Of classes, images, annotations, and in lists with a mark and two characters an end."""
    composed, apart = "K\xe4se", "Ka\u0308se"
    for key, name in zip("abcxyz", (composed, apart) * 3, strict=True):
        folder.annotate(key, xml((name, GOOD[1])).encode())
    for kind, ending in (("Annotations", "xml"), ("JPEGImages", "png")):
        form = {"xml": composed, "png": apart}[ending]
        (folder.root / f"{kind}/a.{ending}").rename(folder.root / f"{kind}/{form}.{ending}")
    text = f"\ufeff{apart}  \r\nb\r\nc\r\n"
    (folder.root / "ImageSets/Main/train.txt").write_bytes(text.encode())
    (folder.root / "ImageSets/Main/test.txt").write_text("x\ny\nz\n")
    made = data.voc(folder.root, size=(5, 8))
    assert (made.class_names, made.findings) == ((composed,), ())
    assert tuple(made.x_train[0][0, 0]) == colour("a")
    assert data.voc(folder.root, 8, class_names=[apart]).class_names == (composed,)
    listed = f"{apart}\n{composed}\n"
    (folder.root / "ImageSets/Main/train.txt").write_text(listed, encoding="utf-8")
    with pytest.raises(data.AnnotationError, match="listed twice"):
        data.voc(folder.root, size=8)


def test_an_image_by_the_name_in_its_annotation_in_another_form(folder):
    text = xml(GOOD).replace("<size>", "<filename>bl\xe4u.png</filename><size>")
    folder.annotate("a", text.encode())
    (folder.root / "JPEGImages/a.png").rename(folder.root / "JPEGImages/bla\u0308u.png")
    assert tuple(folder.load().x_train[0][0, 0]) == colour("a")


@pytest.mark.parametrize(("marked", "kept"), [("1", 0), ("true", 0), (" 0 ", 1), ("False", 1)])
def test_difficult_in_every_way_it_is_written(folder, marked, kept):
    folder.annotate("a", xml(GOOD, GOOD, extra=f"<difficult>{marked}</difficult>"))
    made = folder.load(difficult=False)
    assert made.object_counts().tolist() == [2 * kept, 2, 2]


def test_a_difficult_that_is_neither_is_a_fault(folder):
    folder.annotate("a", xml(GOOD, extra="<difficult>maybe</difficult>"))
    assert folder.faults(difficult=False) == [("bad value", "Annotations/a.xml", 7)]
    assert folder.load().findings == ()


def test_a_folder_without_any_object_left_is_refused(folder):
    for key in "abcxyz":
        folder.annotate(key, xml(GOOD, extra="<difficult>1</difficult>"))
    with pytest.raises(data.AnnotationError, match="is left: 6 × difficult"):
        folder.load(difficult=False)


def test_the_same_image_in_both_parts_is_a_finding_that_is_said(folder):
    Image.new("RGB", (WIDTH, HEIGHT), colour("b")).save(folder.root / "JPEGImages/y.png")
    with pytest.warns(UserWarning, match=r"1 images of the test.*y\.png with the pixels of b\.png"):
        made = folder.load()
    (note,) = made.findings
    assert (note.kind, note.file, note.action) == (
        "same image", "Annotations/y.xml", "kept in both parts",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("note", "size", "is_said"),
    [(3, (WIDTH, HEIGHT), True), (6, (WIDTH, HEIGHT), False), (6, None, True), (1, None, False)],
)
def test_a_turn_that_the_size_does_not_tell_is_said(folder, note, size, is_said):
    folder.annotate("b", xml(GOOD, size=size))
    exif = Image.Exif()
    exif[0x0112] = note
    Image.new("RGB", (WIDTH, HEIGHT), colour("b")).save(folder.root / "JPEGImages/b.png", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = folder.load()
    assert [f.kind for f in made.findings] == ["orientation"] * is_said
    assert ["have an EXIF orientation" in str(w.message) for w in caught] == [True] * is_said
    np.testing.assert_allclose(made.boxes_train[1, 0], [0.1, 0.1, 0.6, 0.6], atol=1e-7)


# Sizes that are not said; pictures that a note turns.


@pytest.mark.parametrize("size", [(0, 0), ("", ""), (-1, -1), (" ", 10), (20, 0), ("None", "nan")])
def test_a_size_that_is_not_said(folder, size):
    folder.annotate("b", xml(GOOD, size=size))
    made = folder.load()
    assert made.findings == ()
    np.testing.assert_allclose(made.boxes_train[1, 0], [0.1, 0.1, 0.6, 0.6], atol=1e-7)


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize(
    ("note", "side", "size", "is_said"),
    [
        (2, "left", (WIDTH, HEIGHT), True),
        (3, "left", (0, HEIGHT), True),
        (8, "left", (WIDTH, 0), False),  # one side tells
        (6, "left", (WIDTH, HEIGHT), False),
        (6, "top", (HEIGHT, WIDTH), False),  # the size is that of the turned picture
        (5, "left", (0, -1), True),
    ],
)
def test_which_way_boxes_are_meant(folder, ending, note, side, size, is_said):
    """Stored: the left half is blue. Turned clockwise (6), that half comes to the top."""
    folder.annotate("b", xml(("cat", (0, 0, 10, 10)), size=size))
    (folder.root / "JPEGImages/b.png").unlink()
    image = Image.new("RGB", (WIDTH, HEIGHT), "red")
    image.paste("blue", (0, 0, WIDTH // 2, HEIGHT))
    exif = Image.Exif()
    exif[0x0112] = note
    image.save(folder.root / f"JPEGImages/b.{ending}", exif=exif, lossless=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = folder.load(size=(20, 20))
    assert [f.kind for f in made.findings] == ["orientation"] * is_said
    assert len(caught) == is_said
    other = {"left": (0, -1), "top": (-1, 0)}[side]
    assert made.x_train[1, 0, 0].argmax() == made.x_train[1][other[::-1]].argmax() == 2
    assert made.x_train[1][other].argmax() == 0


def test_pictures_ending_in_jfif(folder):
    (folder.root / "JPEGImages/b.png").unlink()
    Image.new("RGB", (WIDTH, HEIGHT), colour("b")).save(folder.root / "JPEGImages/b.JFIF", "JPEG")
    np.testing.assert_allclose(folder.load().x_train[1, 0, 0], colour("b"), atol=3)


# What leads out of the folder.


@pytest.fixture
def secret(folder):
    """An image and an annotation beside the folder, of the size and kind that are wanted."""
    place = folder.root.parent / "elsewhere"
    place.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(place / "b.png")
    (place / "b.xml").write_text(xml(GOOD))
    (place / "train.txt").write_text("a\n")
    return place


@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_name_that_leads_out(folder, secret, absolute):
    named = secret / "b.png" if absolute else "../../elsewhere/b.png"
    folder.annotate("b", xml(GOOD).replace("<size>", f"<filename>{named}</filename><size>"))
    (folder.root / "JPEGImages/b.png").unlink()
    assert folder.faults() == [("leads out", "Annotations/b.xml", 1)]
    made = folder.skip()
    assert [tuple(image[0, 0]) for image in made.x_train] == [colour("a"), colour("c")]


def test_a_name_in_a_list_that_leads_out(folder, secret):
    (secret / "b.jpg").write_bytes((secret / "b.png").read_bytes())
    for key in ("../../elsewhere/b", str(secret / "b")):
        folder.lists["train"] = ["a", key, "c"]
        assert folder.faults() == [("no annotation", "ImageSets/Main/train.txt", 2)]
        assert folder.faults(unlabelled=True) == [("leads out", "ImageSets/Main/train.txt", 2)]


@pytest.mark.parametrize("linked", ["JPEGImages/b.png", "Annotations/b.xml", "JPEGImages"])
def test_links_that_lead_out(folder, secret, linked):
    target = secret / "all" if linked == "JPEGImages" else secret / linked.split("/")[1]
    if linked == "JPEGImages":
        (folder.root / linked).rename(target)
    else:
        (folder.root / linked).unlink()
    (folder.root / linked).symlink_to(target)
    assert {kind for kind, _, _ in folder.faults()} == {"leads out"}


def test_lists_that_lead_out(folder, secret):
    with pytest.raises(ValueError, match="files and links that stay in"):
        folder.load(train="../../../elsewhere/train")
    (folder.root / "ImageSets/Main/linked.txt").symlink_to(secret / "train.txt")
    with pytest.raises(ValueError, match=r"linked\.txt'.*It leads to .*elsewhere"):
        folder.load(train="linked")


def test_links_within_the_folder_and_to_it(folder):
    (folder.root / "more").mkdir()
    for kind, name in (("JPEGImages", "b.png"), ("Annotations", "b.xml")):
        (folder.root / kind / name).rename(folder.root / "more" / name)
        (folder.root / kind / name).symlink_to(f"../more/{name}")
    folder.load()
    link = folder.root.parent / "link"
    link.symlink_to(folder.root)
    made = data.voc(link, 8)
    assert (made.findings, made.name, len(made.x_train)) == ((), "pets", 3)


def test_a_file_name_with_backslashes(folder):
    (folder.root / "JPEGImages/b.png").rename(folder.root / "JPEGImages/photo.png")
    for named, said in (
        ("old\\photo.png", "Write old/photo.png, with / for each"),
        ("C:\\data\\photo.png", "a path of Windows"),
    ):
        folder.annotate("b", xml(GOOD).replace("<size>", f"<filename>{named}</filename><size>"))
        with pytest.raises(data.AnnotationError, match=said):
            folder.load()
