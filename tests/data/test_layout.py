"""What folders and files are called: parts or classes, one form of a name, nothing hidden."""

import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from tfkd import data
from tfkd.data import names


def nfc(text):
    return unicodedata.normalize("NFC", text)


def nfd(text):
    return unicodedata.normalize("NFD", text)


class Painter:
    """Writes images of one colour, each another one, so that none is there twice."""

    def __init__(self, root):
        self.root, self.number = root, 0

    def __call__(self, *folders, count=2, names=None):
        for folder in folders:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            for name in names or [f"{k}.png" for k in range(count)]:
                self.number += 1
                colour = (self.number, self.number // 7, 250 - self.number)
                Image.new("RGB", (3, 2), colour).save(self.root / folder / name)

    def part(self, *parts, count=2, classes=("cat", "dog")):
        self(*(f"{part}/{name}" for part in parts for name in classes), count=count)

    def load(self, **options):
        """The data set, and what was warned of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = data.image_folder(self.root, **options)
        assert all(warning.filename == __file__ for warning in caught)
        return made, [str(warning.message) for warning in caught]


@pytest.fixture
def paint(tmp_path):
    return Painter(tmp_path / "pets")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "valid"), ("Train", "Test"), ("training", "testing"), ("train", "dev"),
        ("TRAIN", "VAL"), ("train_images", "test_images"), ("trainset", "testset"),
        ("train2017", "val2017"), ("seg_train", "seg_test"), ("trainval", "test"),
        ("Training Set", "Validation-Set"),
    ],
)  # fmt: skip
def test_parts_by_their_names(paint, train, test):
    paint.part(train, count=3)
    paint.part(test, count=1)
    made, said = paint.load()
    assert made.class_names == ("cat", "dog")
    assert (len(made.x_train), len(made.x_test)) == (6, 2)
    assert made.x_test[:, 0, 0, 0].tolist() == [7, 8]  # painted after six of training
    assert said == []


def test_a_validation_part_stands_back_behind_a_test_part(paint):
    paint.part("train", count=3)
    paint.part("valid", count=2)
    paint.part("test", count=1)
    for file in ("README.md", "labels.csv", ".DS_Store"):
        (paint.root / file).write_text("")
    (paint.root / "labels").mkdir()
    made, said = paint.load()
    assert (len(made.x_train), made.x_test[:, 0, 0, 0].tolist(), said) == (6, [11, 12], [])


def test_images_beside_the_parts_are_left_out_and_named(paint):
    paint.part("train", "test")
    paint("unlabeled", "predict/all", count=3)
    made, (said,) = paint.load()
    assert (made.class_names, len(made.x_train), len(made.x_test)) == (("cat", "dog"), 4, 4)
    assert "'predict' (3 images), 'unlabeled' (3 images) beside them is left out" in said


def test_a_test_part_without_labels_gives_way_to_a_validation_part(paint):
    paint.part("train", "val")
    paint("test", count=5)
    made, (said,) = paint.load()
    assert (made.class_names, len(made.x_test)) == (("cat", "dog"), 4)
    assert "'test' (5 images) beside them is left out" in said


def test_parts_that_are_classes(paint):
    """By their names a split, by what is in them classes."""
    paint("train", "plane", "car")
    made, said = paint.load()
    assert (made.class_names, said) == (("car", "plane", "train"), [])
    paint("test")
    made, (said,) = paint.load()
    assert made.class_names == ("car", "plane", "test", "train")
    assert "taken for classes, since not both of 'test', 'train' hold class folders" in said


def test_classes_with_folders_of_their_own(paint):
    paint("train/steam", "train/electric", "plane")
    made, said = paint.load(test_fraction=0.5)
    assert (made.class_names, said) == (("plane", "train"), [])
    assert len(made.x_train) + len(made.x_test) == 6


@pytest.mark.parametrize(
    ("parts", "flat", "said"),
    [
        (["train"], ["test"], "no class folders in 'test'. To split the training part, pass"),
        ([], ["train", "test"], "no class folders in 'test', 'train'"),
        (["train"], ["unlabelled"], "To split the training part, pass '.*train'"),
        (["val", "test"], [], "a training and a test part"),
        ([], ["train", "masks"], "no class folders in 'train'"),
        (["train", "Training", "test"], [], "one folder of each part.*'Training' and 'train'"),
        (["train", "test", "Test"], [], "'Test' and 'test'.*rename one"),
        (["train"], [], "pass '.*train'"),
    ],
)
def test_parts_that_are_not_whole_are_refused(paint, parts, flat, said):
    paint.part(*parts)
    paint(*flat)
    with pytest.raises(ValueError, match=said):
        paint.load()


def test_what_may_be_parts_is_said(paint):
    paint.part("day", "night")
    made, (said,) = paint.load()
    assert made.class_names == ("day", "night")
    assert "each holds the folders 'cat', 'dog'. If they are parts" in said


def test_parts_below_the_classes_are_said(paint):
    paint("cat/train", "cat/test", "dog/train", "dog/test")
    made, (said,) = paint.load()
    assert made.class_names == ("cat", "dog")
    assert "each of its classes holds 'test', 'train', whose images are mixed" in said


HIDDEN = [
    "cat/.ipynb_checkpoints", "__MACOSX/pets/cat", "dog/sub/@eaDir", ".git", "dog/.thumbnails/x",
    "cat/__MACOSX", "System Volume Information/a", ".Trash/cat",
]  # fmt: skip


def test_what_is_hidden_does_not_count(paint):
    paint("cat", "dog", count=5)
    paint("dog/sub", names=["deep.png"])
    paint(*HIDDEN)
    paint("cat", names=["._0.png"])
    (paint.root / "cat/._1.png").write_bytes(b"a resource fork")
    made, said = paint.load()
    assert (made.class_names, len(made.x_train) + len(made.x_test), said) == (
        ("cat", "dog"), 11, [],
    )  # fmt: skip


def test_hidden_folders_of_a_split(paint):
    paint.part("train", "test", ".cache", "__MACOSX")
    paint("train/.ipynb_checkpoints", "test/cat/.ipynb_checkpoints", "train/@eaDir")
    made, said = paint.load()
    assert (made.class_names, len(made.x_train), len(made.x_test), said) == (
        ("cat", "dog"), 4, 4, [],
    )  # fmt: skip


def test_one_class_in_two_unicode_forms(paint):
    paint(nfc("Käse"), nfd("Käse"), "Brot", count=3)
    made, said = paint.load(test_fraction=0.5)
    assert (made.class_names, said) == (("Brot", nfc("Käse")), [])
    assert np.bincount(np.r_[made.y_train, made.y_test]).tolist() == [3, 6]


def test_unicode_forms_that_differ_between_parts(paint):
    paint(f"train/{nfc('é')}clair", "train/brot", f"test/{nfd('é')}clair", "test/brot")
    made, said = paint.load()
    assert (made.class_names, made.y_test.tolist(), said) == (
        ("brot", nfc("éclair")), [0, 0, 1, 1], [],
    )  # fmt: skip


def test_names_that_differ_in_spaces_are_one_class_and_said(paint):
    paint("cat", "cat ", "dog")
    made, (said,) = paint.load()
    assert made.class_names == ("cat", "dog")
    assert "'cat ' and the same name without spaces are one class" in said


def test_names_that_differ_in_case_are_two_classes_and_said(paint):
    paint("Cat", "cat", "a", "A")
    made, (said,) = paint.load()
    assert made.class_names == ("A", "Cat", "a", "cat")
    assert "'Cat', 'cat' differ only in case and are taken for 2 classes" in said


def test_classes_without_test_images_are_said(paint):
    paint.part("train", classes=("cat", "cow", "dog"))
    paint.part("test", classes=("dog",))
    made, (said,) = paint.load()
    assert made.y_test.tolist() == [2, 2]
    assert "no images of 2 of the 3 classes, 'cat', 'cow'" in said
    paint.part("test", classes=("Dog",))
    with pytest.raises(ValueError, match="only classes that are in.*Did you mean 'dog'"):
        paint.load()


def test_images_of_no_class_and_of_kinds_that_are_not_read(paint):
    paint("cat", "dog", "")
    (paint.root / "cat/phone.HEIC").write_bytes(b"")
    made, said = paint.load(test_fraction=0.5)
    assert len(made.x_train) + len(made.x_test) == 4
    assert "'0.png', '1.png' (images beside the class folders: 2)" in said[0]
    assert "1 images in formats that are not supported (.heic)" in said[1]


def test_files_with_several_pictures_are_said(paint):
    paint("cat", "dog")
    pages = [Image.new("RGB", (3, 2), (200, k, 9)) for k in range(3)]
    pages[0].save(paint.root / "dog/stack.tiff", save_all=True, append_images=pages[1:])
    made, (said,) = paint.load(test_fraction=0.4)
    assert len(made.x_train) + len(made.x_test) == 5
    assert "1 files hold more than one picture, of which the first is read" in said
    assert "stack.tiff" in said


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"), ("val_set", "dev"), ("Evaluation", "dev"), ("train_val", "train"),
        ("test1", "test"), ("images", None), ("trains", None), ("testament", None),
        ("train_test", None), ("validate me", None), ("поезд", None), ("", None),
    ],
)  # fmt: skip
def test_part_of(name, part):
    found = names.part_of(name)
    assert (found and found[0]) == part


# Texts.


def rows(*pairs):
    return "".join(f"{text}\t{label}\n" for text, label in pairs).encode()


GOOD = rows(("a fine film", "good"), ("so dull", "bad"))


@pytest.mark.parametrize(
    ("files", "has_dev"),
    [
        (["train.tsv", "valid.tsv"], False), (["Train.TSV", "Test.TSV"], False),
        (["training.tsv", "testing.tsv", "dev.tsv"], True), (["train.tsv", "dev.tsv"], False),
        (["TRAIN.tsv", "test.tsv", "validation.tsv", "._train.tsv", "notes.tsv"], True),
    ],
)  # fmt: skip
def test_parts_of_texts(tmp_path, files, has_dev):
    for number, name in enumerate(files):
        content = GOOD if number == 0 else rows((f"text {number}", "bad"))
        (tmp_path / name).write_bytes(content)
    made = data.load(tmp_path)
    assert made.x_train.tolist() == ["a fine film", "so dull"]
    assert made.x_test.tolist() == ["text 1"]
    assert (made.x_dev is not None) == has_dev


def test_two_files_of_one_part_of_texts(tmp_path):
    for name in ("train.tsv", "Train.tsv", "test.tsv"):
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"one file of each part.*Train\.tsv and train\.tsv"):
        data.tsv(tmp_path)


def test_labels_of_texts_that_differ_in_case_are_said(tmp_path):
    (tmp_path / "train.tsv").write_bytes(rows(("a", "Good"), ("b", "good"), ("c", "bad")))
    (tmp_path / "test.tsv").write_bytes(rows(("d", "bad")))
    with pytest.warns(UserWarning, match="'Good', 'good' differ only in case.*2 classes"):
        assert data.tsv(tmp_path).num_classes == 3


def test_texts_and_labels_in_two_unicode_forms(tmp_path):
    pairs = [(f"{form('café')} {n}", form("süß")) for n, form in enumerate((nfc, nfd))]
    (tmp_path / "train.tsv").write_bytes(rows(*pairs, ("x", "sauer")))
    (tmp_path / "test.tsv").write_bytes(rows((nfd("café"), nfd("süß"))))
    made = data.tsv(tmp_path)
    assert (made.class_names, made.y_test.tolist()) == (("sauer", nfc("süß")), [1])
    tokens = made.vectorize(max_length=1)
    assert tokens.x_train[0] == tokens.x_train[1] == tokens.x_test[0]
    assert tokens.encode([nfd("café")]).tolist() == tokens.encode([nfc("café")]).tolist()
    # A vocabulary of another form, stored long ago, keeps what it knows.
    old = data.Encoder(("", "[UNK]", nfd("café")), 1)
    assert old([nfd("café")]).tolist() == [[2]]


# Symbolic links.


def test_links_within_the_folder_are_followed(paint):
    """To pictures, to class folders and to folders in them; one that leads round is passed over."""
    paint.part("train", "test")
    paint("more/cats", "more/dogs", count=3)
    root = paint.root
    (root / "train/cat/linked.png").symlink_to(root / "more/cats/0.png")
    (root / "train/dog/linked").symlink_to(root / "more/dogs")
    (root / "train/dog/linked/round").symlink_to(root / "more")
    (root / "test/cat/round").symlink_to("..")
    paint("loop/one", "loop/two", count=1)
    (root / "loop/one/two").symlink_to(root / "loop/two")
    (root / "loop/two/one").symlink_to(root / "loop/one")
    (root / "outside").mkdir()
    (root / "outside/train").symlink_to(root / "train")
    made, _ = paint.load()
    assert np.bincount(made.y_train).tolist() == [2 + 1, 2 + 3]
    assert np.bincount(made.y_test).tolist() == [2, 2]


@pytest.mark.parametrize("linked", ["train/cat", "train/cat/9.png", "train/cat/sub", "test"])
def test_links_that_lead_out_of_the_folder_are_refused(paint, tmp_path, linked):
    paint.part("train", "test")
    away = tmp_path / "away"
    (paint.root / linked.split("/")[0]).rename(away) if linked == "test" else away.mkdir()
    if linked == "train/cat":
        (paint.root / linked).rename(away / "cat")
        away /= "cat"
    elif linked.endswith("png"):
        away /= "9.png"
        Image.new("RGB", (3, 2)).save(away)
    (paint.root / linked).symlink_to(away)
    with pytest.raises(ValueError, match=f"received '{linked}.*leads to .*away"):
        paint.load()
    (tmp_path / "link").symlink_to(paint.root)  # the folder itself may be one
    (paint.root / linked).unlink()
    paint(linked if "." not in linked else "train/cat", count=1) if linked != "test" else (
        paint.part("test")
    )
    assert data.image_folder(tmp_path / "link").num_classes == 2


def test_texts_that_lead_out_of_the_folder_are_refused(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (tmp_path / "all.tsv").write_text("so good\tgood\nso bad\tbad\n")
    (folder / "test.tsv").write_text("good\tgood\n")
    (folder / "train.tsv").symlink_to(tmp_path / "all.tsv")
    with pytest.raises(ValueError, match=r"received 'train\.tsv'.*leads to .*all\.tsv"):
        data.tsv(folder)
    (tmp_path / "link.tsv").symlink_to(tmp_path / "all.tsv")
    with pytest.raises(ValueError, match="at least two examples of each class"):  # it is read
        data.tsv(tmp_path / "link.tsv")
