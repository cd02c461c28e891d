"""Texts: tab-separated files, what they refuse, and token ids against a count by hand."""

import collections

import numpy as np
import pytest

from tfkd import data

ROWS = [
    ("a fine film", "good"),
    ("so dull", "bad"),
    ("fine , \"fine\" !", "good"),
    ("dull dull film", "bad"),
    ("it 's café fine", "good"),
]  # fmt: skip


def lines(rows, head=None, order=(0, 1)):
    rows = ([head] if head else []) + list(rows)
    return "".join("\t".join(row[i] for i in order) + "\n" for row in rows)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TRAIN, TEST = lines(ROWS), lines(ROWS[:2])


def folder(root, train=TRAIN, test=TEST, **others):
    """Writes the parts into a folder, None for no file; returns it."""
    for name, content in {"train": train, "test": test, **others}.items():
        if content is not None:
            write(root / f"{name}.tsv", content)
    return root


# Files.


@pytest.mark.parametrize("dev", ["dev", "val", "validation", None])
def test_a_folder_with_its_parts(tmp_path, dev):
    parts = {dev: lines(ROWS[3:])} if dev else {}
    dataset = data.tsv(folder(tmp_path / "films", **parts))
    assert dataset.x_train.tolist() == [text for text, _ in ROWS]
    assert dataset.x_train.dtype == object
    assert dataset.class_names == ("bad", "good")
    assert dataset.y_train.tolist() == [1, 0, 1, 0, 1]
    assert dataset.y_train.dtype == np.int32
    assert dataset.x_test.tolist() == [text for text, _ in ROWS[:2]]
    assert dataset.name == "films"
    if dev:
        assert dataset.y_dev.tolist() == [0, 1]
        assert repr(dataset) == "TextDataset('films', 5 + 2 + 2 texts, 2 classes)"
    else:
        assert dataset.x_dev is dataset.y_dev is None
    with pytest.raises(AttributeError):
        dataset.name = "other"


def test_one_file_is_split_by_class(tmp_path):
    rows = [(f"text {i}", "abc"[i % 3]) for i in range(30)]
    file = write(tmp_path / "all.tsv", lines(rows))
    dataset = data.tsv(file, test_fraction=0.4, seed=2)
    assert np.bincount(dataset.y_test).tolist() == [4, 4, 4]
    seen = [*zip(dataset.x_train, dataset.y_train, strict=True)]
    seen += [*zip(dataset.x_test, dataset.y_test, strict=True)]
    assert sorted(seen) == sorted((text, "abc".index(label)) for text, label in rows)
    assert data.tsv(file, test_fraction=0.4, seed=2).x_test.tolist() == dataset.x_test.tolist()
    assert data.tsv(file, test_fraction=0.4, seed=3).x_test.tolist() != dataset.x_test.tolist()
    assert dataset.name == "all"


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (lines(ROWS), {}),
        (lines(ROWS, order=(1, 0)), {}),
        (lines(ROWS, ("sentence", "label")), {}),
        (lines(ROWS, ("Review", "Sentiment"), (1, 0)), {}),
        (lines(ROWS, ("was", "ist")), {"header": True}),
        (lines(ROWS, ("was", "ist"), (1, 0)), {"columns": ("was", "ist")}),
        (lines(ROWS, order=(1, 0)), {"columns": (1, 0)}),
        (lines([(t, label, str(i)) for i, (t, label) in enumerate(ROWS)], order=(2, 1, 0)),
         {"columns": (2, 1)}),
        (lines([(t, label, str(i)) for i, (t, label) in enumerate(ROWS)],
               ("sentence", "label", "id"), (2, 0, 1)), {}),
        ("\ufeff" + lines(ROWS, ("sentence", "label")), {}),
        (lines(ROWS).replace("\n", "\r\n").replace("\r\n", "\r\n\r\n", 2), {}),
        (lines(ROWS).rstrip("\n"), {}),
    ],
)  # fmt: skip
def test_columns_header_and_line_ends(tmp_path, content, options):
    dataset = data.tsv(folder(tmp_path, content, content), **options)
    assert dataset.x_train.tolist() == dataset.x_test.tolist() == [text for text, _ in ROWS]
    assert dataset.y_train.tolist() == [1, 0, 1, 0, 1]


def test_a_header_may_be_ordered_anew_in_the_test_file(tmp_path):
    head = ("sentence", "label")
    test = lines([(t, label, "7") for t, label in ROWS[:2]], (*head, "id"), (2, 1, 0))
    dataset = data.tsv(folder(tmp_path, lines(ROWS, head), test))
    assert dataset.x_test.tolist() == ["a fine film", "so dull"]
    assert dataset.y_test.tolist() == [1, 0]


def test_other_line_separators_stay_in_a_text(tmp_path):
    rows = [("one\x85two\u2028three", "0"), ("four", "1")]
    assert data.tsv(folder(tmp_path, lines(rows), lines(rows))).x_train[0] == rows[0][0]


def test_integer_labels_are_ordered_as_numbers_and_can_be_named(tmp_path):
    rows = [(f"stars {n}", str(n)) for n in (10, 9, -1)]
    dataset = data.tsv(folder(tmp_path, lines(rows), lines(rows)))
    assert dataset.class_names == ("-1", "9", "10")
    assert dataset.y_train.tolist() == [2, 1, 0]
    named = data.tsv(tmp_path, class_names=("low", "high", "top"))
    assert named.class_names == ("low", "high", "top")
    with pytest.raises(ValueError, match="`class_names`.*3 names"):
        data.tsv(tmp_path, class_names=("low", "high"))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"train": ""}, r"rows of text and label.*none in train\.tsv"),
        ({"test": "\n \n"}, r"none in test\.tsv"),
        ({"train": "sentence\tlabel\n"}, r"rows below the header.*train\.tsv"),
        ({"train": lines(ROWS) + "only a text\n"}, r"2 columns.*1 in line 6 of .*train\.tsv"),
        ({"test": "\n\n" + lines(ROWS) + "a\tb\tc\n"}, r"3 in line 8 of .*test\.tsv"),
        ({"train": "a, good\nb, bad\n"}, r"two columns.*1 in line 1.*not by commas"),
        ({"train": lines(ROWS) + " \tgood\n"}, "a text in each row.*line 6"),
        ({"dev": lines(ROWS) + "fine\t \n"}, r"a label in each row.*line 6 of .*dev\.tsv"),
        ({"test": lines([("x", "goods")])}, r"'goods' in line 1 of .*Did you mean 'good'"),
        ({"test": lines([("x", "7")])}, "The training part has 'bad', 'good'"),
        ({"train": lines(ROWS[:1] * 3)}, "two or more classes.*'good' alone"),
        ({"train": lines(ROWS).encode("utf-16")}, "UTF-8.*line 1 of"),
        ({"train": lines(ROWS[:4]).encode("utf-16-le")}, "null bytes: is it UTF-16"),
        ({"test": lines(ROWS).encode("latin-1")}, r"UTF-8.*line 5 of .*test\.tsv"),
        ({"train": lines([(f"text {i}", f"id {i}") for i in range(12)])}, "labels that repeat"),
        ({"train": lines([("a", "b", "c")] * 2, order=(0, 1, 2))}, "`columns`.*3 columns"),
        ({"train": lines(ROWS, ("sentence", "label")), "test": lines(ROWS, ("id", "sentence"))},
         r"name in the header of test\.tsv.*'label'"),
    ],
)  # fmt: skip
def test_what_a_folder_is_refused_for(tmp_path, parts, said):
    with pytest.raises(ValueError, match=said):
        data.tsv(folder(tmp_path, **parts))


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        data.tsv(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"test\.tsv.*To split one file"):
        data.tsv(folder(tmp_path, test=None))
    with pytest.raises(FileNotFoundError, match=r"train\.tsv"):
        data.tsv(folder(tmp_path / "other", train=None))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": 0}, "`columns`"),
        ({"columns": "01"}, "`columns`"),
        ({"columns": (0,)}, "`columns`"),
        ({"columns": (0, -1)}, "`columns`"),
        ({"columns": (0, 1.0)}, "`columns`"),
        ({"columns": (1, 1)}, "two different"),
        ({"columns": (0, 2)}, "numbers below 2"),
        ({"columns": ("text", "label")}, "It has: 'a fine film', 'good'"),
        ({"columns": ("text", "label"), "header": False}, "It has no header"),
        ({"header": "yes"}, "`header`"),
        ({"test_fraction": 1}, "`test_fraction`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_bad_arguments(tmp_path, options, said):
    file = write(tmp_path / "all.tsv", lines(ROWS))
    with pytest.raises((TypeError, ValueError), match=said):
        data.tsv(file, **options)


def test_load_chooses_texts(tmp_path):
    assert isinstance(data.load(folder(tmp_path / "texts")), data.TextDataset)
    file = write(tmp_path / "all.tsv", lines(ROWS))
    assert len(data.load(str(file), test_fraction=0.4).x_test) == 2
    # .tsv files and nothing else are meant as texts; the error says what lacks.
    with pytest.raises(FileNotFoundError, match=r"train\.tsv"):
        data.load(folder(tmp_path / "half", train=None))
    # A list beside folders of images is none.
    write(tmp_path / "images" / "cat" / "notes.txt", "")
    write(tmp_path / "images" / "dog" / "notes.txt", "")
    write(tmp_path / "images" / "list.tsv", lines(ROWS))
    with pytest.raises(ValueError, match="images in every class"):
        data.load(tmp_path / "images")


# In memory.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_train": "text"}, "One text"),
        ({"x_train": 3}, "`x_train`"),
        ({"x_train": ["a", None]}, "`x_train`.*entry 1"),
        ({"x_test": [], "y_test": []}, "`x_test`.*at least one text"),
        ({"y_train": [0]}, "2 labels"),
        ({"y_train": [[0], [1]]}, "2 labels"),
        ({"y_train": [0.0, 1.0]}, "integer labels"),
        ({"y_train": [0, -1]}, "labels from 0"),
        ({"y_train": [0, 2]}, r"Labels without a text: \[1\]"),
        ({"y_test": [2]}, "`y_test`.*0 to 1"),
        ({"x_dev": ["a"]}, "`y_dev`.*both"),
        ({"x_dev": ["a"], "y_dev": [5]}, "`y_dev`"),
        ({"class_names": ("a",)}, "2 names"),
        ({"class_names": "ab"}, "`class_names`"),
    ],
)
def test_what_a_data_set_refuses(changes, said):
    fields = {"x_train": ["a", "b"], "y_train": [0, 1], "x_test": ["a"], "y_test": [0], **changes}
    with pytest.raises((TypeError, ValueError), match=said):
        data.TextDataset(**fields)


# Token ids.


def words(text):
    """Lower case, without punctuation, split at spaces."""
    return "".join(c for c in text.lower() if c.isalnum() or c == " ").split()


def texts():
    train, labels = [text for text, _ in ROWS], [1, 0, 1, 0, 1]
    test = ["DULL dull unseen film, fine fine fine!", "?!", ""]
    return data.TextDataset(train, labels, test, [0, 1, 0], x_dev=["film"], y_dev=[0])


def test_token_ids_by_hand():
    dataset = texts()
    tokens = dataset.vectorize(vocab_size=100, max_length=5)
    counts = collections.Counter(word for text, _ in ROWS for word in words(text))
    assert sorted(tokens.vocabulary[2:]) == sorted(counts)
    falling = [counts[word] for word in tokens.vocabulary[2:]]
    assert falling == sorted(falling, reverse=True)
    assert tokens.vocabulary[:2] == ("", "[UNK]")
    index = {word: i for i, word in enumerate(tokens.vocabulary)}
    for part in ("train", "test", "dev"):
        ids = getattr(tokens, f"x_{part}")
        assert ids.dtype == np.int32
        for row, text in zip(ids, getattr(dataset, f"x_{part}"), strict=True):
            want = [index.get(word, 1) for word in words(text)][:5]
            assert row.tolist() == want + [0] * (5 - len(want))
    assert tokens.x_test[0].tolist()[2] == 1
    assert not tokens.x_test[1:].any()
    np.testing.assert_array_equal(tokens.y_test, [0, 1, 0])


def test_the_vocabulary_keeps_the_most_frequent_words_of_training():
    tokens = texts().vectorize(vocab_size=4, max_length=3)
    assert tokens.vocab_size == 4
    assert tokens.vocabulary == ("", "[UNK]", "fine", "dull")
    assert tokens.encode(["unseen dull fine"]).tolist() == [[1, 3, 2]]
    assert (tokens.max_length, tokens.num_classes) == (3, 2)
    assert repr(tokens) == "TokenDataset('texts', 5 + 3 texts, 2 classes, 4 ids, 3 a text)"
    with pytest.raises(AttributeError):
        tokens.name = "other"


def test_an_encoder_from_a_stored_vocabulary_encodes_the_same():
    tokens = texts().vectorize(vocab_size=7, max_length=4)
    again = data.Encoder(list(tokens.vocabulary), 4)
    sentences = ["a fine film", "it 's dull", "", "café Dull!"] * 3
    np.testing.assert_array_equal(again(sentences), tokens.encode(sentences))
    assert again == tokens.encode


def test_many_texts_are_encoded_in_pieces(monkeypatch):
    encode = data.Encoder(("", "[UNK]", "a", "b"), 2)
    whole = encode(["a b", "b", "a", "", "b b b"])
    monkeypatch.setattr("tfkd.data.text._CHUNK", 2)
    np.testing.assert_array_equal(encode(["a b", "b", "a", "", "b b b"]), whole)
    assert whole.tolist() == [[2, 3], [3, 0], [2, 0], [0, 0], [3, 3]]


@pytest.mark.parametrize("options", [{"vocab_size": 2}, {"max_length": 0}, {"vocab_size": "many"}])
def test_bad_sizes(options):
    with pytest.raises((TypeError, ValueError), match="`(vocab_size|max_length)`"):
        texts().vectorize(**options)


def test_what_an_encoder_refuses():
    encode = data.Encoder(("", "[UNK]", "a"), 2)
    for bad in ("a text", [], [b"a"], 3):
        with pytest.raises((TypeError, ValueError), match="`texts`"):
            encode(bad)
    for bad in (("a", "b", "c"), ("", "[UNK]"), ("", "[UNK]", "a", "a")):
        with pytest.raises(ValueError, match="`vocabulary`"):
            data.Encoder(bad, 2)
    with pytest.raises(ValueError, match="texts with words"):
        data.TextDataset(["!", "?"], [0, 1], ["a"], [0]).vectorize()


@pytest.mark.parametrize(
    "words", [("good", "film"), ("café", "cafe\u0301", '"', "\\", "\u2028", "日本", "a b", "0")]
)
def test_an_encoder_is_the_same_after_saving(tmp_path, words):
    encode = data.Encoder(("", "[UNK]", *words), 7)
    encode.save(tmp_path / "e.json")
    again = data.Encoder.load(tmp_path / "e.json")
    assert again == encode and again.vocabulary == encode.vocabulary and again.max_length == 7
    texts = ["good café 日本 film", "0"]
    np.testing.assert_array_equal(again(texts), encode(texts))


@pytest.mark.parametrize(
    "content",
    [
        "", "{}", "[1]", "null", '{"format": 2, "max_length": 3, "vocabulary": ["", "[UNK]", "a"]}',
        '{"format": 1, "max_length": 0, "vocabulary": ["", "[UNK]", "a"]}',
        '{"format": 1, "max_length": 3, "vocabulary": ["a"]}',
        '{"format": 1, "max_length": 3, "vocabulary": 5}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_encoder_is_refused(tmp_path, content):
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(ValueError, match=r"`path`: expected a file that tfkd.data.Encoder.save"):
        data.Encoder.load(tmp_path / "e.json")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        data.Encoder.load(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('"a ""quoted"" film"', True),
        ('"all of it ""good"""', True),
        ('"a quotation alone"', False),  # as people write it
        ('she said ""no"" twice', False),
        ('"one" and "two"', False),
    ],
)
def test_quotes_of_csv_writers_are_told(tmp_path, text, told, recwarn):
    rows = [f"{text}\t0", "dull\t1", "fine\t0", "so dull\t1"] * 3
    (tmp_path / "t.tsv").write_text("\n".join(rows))
    found = data.tsv(tmp_path / "t.tsv")
    assert text in [*found.x_train, *found.x_test]  # kept as it is
    assert any("3 texts are in quotation marks" in str(one.message) for one in recwarn) == told
