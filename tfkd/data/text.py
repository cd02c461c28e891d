"""Text classification data sets in memory, and tokenization to word ids."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfkd import artifacts, checks
from tfkd.data import quality
from tfkd.data.splits import Splits, named_classes, split_labels
from tfkd.types import Path

_CHUNK = 4096
_FORMAT = 1
_STANDARDIZE = "lower_and_strip_punctuation"


def _texts(name: str, value: Any, one_form: bool = True) -> np.ndarray:
    """Returns `value` as an object array (N,) of str, N at least 1, by default in NFC."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        raise checks.type_error(name, "a sequence of texts", value, "One text? Pass [text].")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise checks.type_error(name, "texts of type str", text, f"See entry {index}.")
    if len(value) == 0:
        raise checks.value_error(name, "at least one text", value)
    texts = np.empty(len(value), object)
    texts[:] = [unicodedata.normalize("NFC", text) if one_form else str(text) for text in value]
    return texts


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TextDataset(Splits):
    """Labelled texts, split into a training, a test and optionally a validation part.

    Warns about texts that are in two parts, and about equal texts with different labels.
    Texts are normalized to Unicode NFC.

    Args:
        x_train: N texts: a list or an array of `str`.
        y_train: (N,) integer labels; each of 0..K-1 at least once.
        x_test, y_test: M texts and their labels, within 0..K-1.
        class_names: K names; default "0", "1", ...
        name: name of the data set in reports.
        x_dev, y_dev: a validation part, for choosing hyperparameters; both or neither.

    Raises:
        TypeError: if an entry is not text, or a label not an integer.
        ValueError: if a part is empty, or lengths or labels are inconsistent.

    Example:
        >>> from tfkd import data
        >>> texts = data.TextDataset(["Good!", "bad", "so good"], [1, 0, 1], ["bad bad"], [0])
        >>> texts
        TextDataset('texts', 3 + 1 texts, 2 classes)
        >>> tokens = texts.vectorize(max_length=3)
        >>> tokens.vocabulary
        ('', '[UNK]', 'good', 'so', 'bad')
        >>> tokens.x_test.tolist()
        [[4, 4, 0]]
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] = ()
    name: str = "texts"
    x_dev: np.ndarray | None = None
    y_dev: np.ndarray | None = None

    def __post_init__(self):
        if (self.x_dev is None) != (self.y_dev is None):
            missing = "x_dev" if self.x_dev is None else "y_dev"
            raise checks.value_error(missing, "both x_dev and y_dev, or neither", None)
        labels = {}
        for part in self.parts:
            x, y = f"x_{part}", f"y_{part}"
            texts = _texts(x, getattr(self, x))
            labels[y] = split_labels(y, getattr(self, y), len(texts), "text")
            self._set({x: texts, y: labels[y]})
        if isinstance(self.class_names, str):
            raise checks.type_error("class_names", "a sequence of names", self.class_names)
        names = named_classes(self.class_names, labels, "a text")
        self._set({"class_names": names})
        parts = {p: quality.Part(getattr(self, f"x_{p}"), labels[f"y_{p}"]) for p in self.parts}
        quality.repeated(self.name, "texts", parts, names)

    def __repr__(self) -> str:
        dev = "" if self.x_dev is None else f" + {len(self.x_dev)}"
        counts = f"{len(self.x_train)} + {len(self.x_test)}{dev}"
        return f"TextDataset({self.name!r}, {counts} texts, {self.num_classes} classes)"

    @property
    def parts(self) -> tuple[str, ...]:
        """("train", "test"), and "dev" where there is one."""
        return ("train", "test") if self.x_dev is None else ("train", "test", "dev")

    def vectorize(self, vocab_size: int = 10_000, max_length: int = 64) -> TokenDataset:
        """Tokenizes the texts with the vocabulary of the training part.

        Texts are lower-cased, stripped of punctuation and split at white space
        (`keras.layers.TextVectorization`). Id 0 is padding, id 1 any unknown word;
        words follow by decreasing frequency.

        Args:
            vocab_size: largest number of ids, at least 3.
            max_length: tokens per text, L: longer texts are truncated.

        Returns:
            A `TokenDataset` with at most `vocab_size` ids.

        Raises:
            ValueError: if a size is too small, or the training texts contain no word.
        """
        expected = "an integer of at least 3: padding, unknown, and words"
        checks.integer("vocab_size", vocab_size, 3, expected)
        checks.positive_int("max_length", max_length)
        import tensorflow as tf
        import tf_keras as keras

        layer = keras.layers.TextVectorization(max_tokens=vocab_size, standardize=_STANDARDIZE)
        layer.adapt(tf.constant(self.x_train), batch_size=_CHUNK)
        vocabulary = tuple(str(word) for word in layer.get_vocabulary())
        if len(vocabulary) < 3:
            raise checks.value_error("x_train", "texts with words", self.x_train[0])
        encode = Encoder(vocabulary, max_length)
        fields = {f"x_{part}": encode(getattr(self, f"x_{part}")) for part in self.parts}
        fields |= {f"y_{part}": getattr(self, f"y_{part}") for part in self.parts}
        return TokenDataset(encode, class_names=self.class_names, name=self.name, **fields)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Tokenizer: texts → word ids of a fixed vocabulary.

    Args:
        vocabulary: word of each id; the first two are "" (padding) and "[UNK]".
        max_length: tokens per text, L.

    Example:
        >>> from tfkd import data
        >>> data.Encoder(("", "[UNK]", "good", "film"), 4)(["A good film.", ""]).tolist()
        [[1, 2, 3, 0], [0, 0, 0, 0]]
    """

    vocabulary: tuple[str, ...]
    max_length: int

    def __post_init__(self):
        words = tuple(str(word) for word in self.vocabulary)
        if words[:2] != ("", "[UNK]") or len(set(words)) != len(words) or len(words) < 3:
            expected = "'', '[UNK]' and then words, each once"
            raise checks.value_error("vocabulary", expected, words[:5])
        checks.positive_int("max_length", self.max_length)
        object.__setattr__(self, "vocabulary", words)

    def to_json(self) -> dict[str, Any]:
        """Vocabulary and length as JSON values."""
        return {"format": _FORMAT, "max_length": self.max_length, "vocabulary": [*self.vocabulary]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Encoder:
        """The inverse of `to_json`.

        Raises:
            ValueError: if `values` are something else.
        """
        keys = set(values) if isinstance(values, Mapping) else set()
        if keys != {"format", "max_length", "vocabulary"} or values["format"] != _FORMAT:
            expected = f"what Encoder.to_json returns, of format {_FORMAT}"
            raise checks.value_error("values", expected, values)
        return cls(tuple(values["vocabulary"]), values["max_length"])

    def save(self, path: Path) -> None:
        """Writes the encoder as JSON, atomically; `load` gives it back.

        A `tfkd.runtime.Predictor` of `m.onnx` finds it as `m.onnx.encoder.json`;
        `tfkd.export.to_tflite(..., encoder=...)` puts it into the file.

        Args:
            path: the file to create or replace.

        Raises:
            OSError: if it cannot be written.

        Example:
            >>> import os, tempfile
            >>> from tfkd import data
            >>> path = os.path.join(tempfile.mkdtemp(), "encoder.json")
            >>> encode = data.Encoder(("", "[UNK]", "good", "film"), 4)
            >>> encode.save(path)
            >>> data.Encoder.load(path) == encode
            True
        """
        artifacts.write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Encoder:
        """Reads a file that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is another file, or damaged.
        """
        checks.instance("path", path, (str, os.PathLike), "a path")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"`path`: there is no file {os.fspath(path)!r}.")
        try:
            return cls.from_json(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            expected = "a file that tfkd.data.Encoder.save wrote"
            raise checks.value_error("path", expected, os.fspath(path), f"{error}") from error

    @functools.cached_property
    def _has_one_form(self) -> bool:
        return all(unicodedata.is_normalized("NFC", word) for word in self.vocabulary)

    @functools.cached_property
    def _layer(self) -> Any:
        import tf_keras as keras

        return keras.layers.TextVectorization(
            standardize=_STANDARDIZE,
            output_sequence_length=self.max_length,
            vocabulary=list(self.vocabulary[2:]),
        )

    def __call__(self, texts: Sequence[str] | np.ndarray) -> np.ndarray:
        """Encodes N texts.

        Args:
            texts: a list or an array of `str`.

        Returns:
            (N, L) int32 token ids, padded with 0.

        Raises:
            TypeError: if `texts` is a single text, or holds anything but texts.
            ValueError: if `texts` is empty.
        """
        import tensorflow as tf

        texts = _texts("texts", texts, self._has_one_form)
        starts = range(0, len(texts), _CHUNK)
        ids = [self._layer(tf.constant(texts[s : s + _CHUNK])).numpy() for s in starts]
        return np.concatenate(ids).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TokenDataset(Splits):
    """A tokenized `TextDataset`, made by `TextDataset.vectorize`.

    Attributes:
        encode: the `Encoder`, for new texts: `tokens.encode(["a new one"])`.
        x_train, x_test, x_dev: (N, L) int32 token ids, padded with 0.
        y_train, y_test, y_dev: (N,) int32 labels; the dev part may be None.
        class_names: names of the classes.
        name: name of the data set in reports.
    """

    encode: Encoder
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    name: str = "texts"
    x_dev: np.ndarray | None = None
    y_dev: np.ndarray | None = None

    def __repr__(self) -> str:
        return (
            f"TokenDataset({self.name!r}, {len(self.x_train)} + {len(self.x_test)} texts, "
            f"{self.num_classes} classes, {self.vocab_size} ids, {self.max_length} a text)"
        )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The word of each id."""
        return self.encode.vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of ids V, padding and unknown included."""
        return len(self.vocabulary)

    @property
    def max_length(self) -> int:
        """Tokens per text, L."""
        return self.encode.max_length
