"""Text models: a tokenizer inside a model is taken out of it; vocabularies from files."""

from __future__ import annotations

import pathlib
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.data.text import Encoder
from tfkd.networks.layer_parts import flat_layers

_LENGTH = 64  # tokens of a text, where the model leaves it open
_STANDARD = "lower_and_strip_punctuation"


def without_tokenizer(model: keras.Model) -> tuple[keras.Model, Encoder | None]:
    """A text model without its TextVectorization, and the tokenizer that replaces it.

    A file for a phone takes token ids, as it has no strings.

    Returns:
        The model itself and None, if it takes token ids already.

    Raises:
        ValueError: if its tokenizer does something that `tfkd.data.Encoder` does not.
    """
    layers = [one for one in model.layers if isinstance(one, keras.layers.TextVectorization)]
    if not layers:
        return model, None
    (layer,) = layers
    settings = layer.get_config()
    usual = {"standardize": _STANDARD, "split": "whitespace", "output_mode": "int", "ngrams": None}
    other = {k: settings[k] for k, v in usual.items() if settings[k] != v}
    if other or len(layers) > 1:
        expected = f"a model whose TextVectorization has the settings {usual}"
        raise checks.value_error("model", expected, f"one with {other}")
    length = settings["output_sequence_length"] or _LENGTH
    words = [str(word) for word in layer.get_vocabulary()]
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    if isinstance(model, keras.Sequential) and model.layers[0] is layer:
        flat = keras.Sequential([tokens, *model.layers[1:]], name=model.name)
    else:
        rest = keras.Model(layer.output, model.outputs, name=f"{model.name}_tokens")
        flat = keras.Model(tokens, rest(tokens), name=model.name)
    return flat, Encoder(tuple(words), length)


def sizes(model: keras.Model) -> tuple[int, int]:
    """(rows of the embedding, tokens of a text) of a model that takes token ids.

    Raises:
        ValueError: if it has no embedding.
    """
    tables = [
        one.input_dim for one in flat_layers(model) if isinstance(one, keras.layers.Embedding)
    ]
    shape = model.input_shape
    if not tables or not isinstance(shape, tuple) or len(shape) != 2:
        expected = "a text model that takes strings, or one input of token ids"
        raise checks.value_error("model", expected, f"{model.name}, which takes {shape}")
    return max(tables), shape[1] or _LENGTH


def read_vocabulary(path: pathlib.Path, model: Any) -> Encoder:
    """The tokenizer of a file: what `Encoder.save` wrote, or a text file of one word a line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is another file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`vocabulary`: there is no file {str(path)!r}.")
    if path.suffix.lower() == ".json":
        return Encoder.load(path)
    words = path.read_text(encoding="utf-8").splitlines()
    length = sizes(model)[1] if isinstance(model, keras.Model) else _LENGTH
    if words[:2] != ["", "[UNK]"]:
        words = ["", "[UNK]", *words]
    return Encoder(tuple(words), length)


def beside(model: str) -> Encoder | None:
    """The tokenizer beside the file of a model, MODEL.encoder.json, or None."""
    path = pathlib.Path(f"{model}.encoder.json")
    return Encoder.load(path) if path.is_file() else None
