"""Torch-Pruning on a ResNet of tfkd whose weights are carried over, for `prune_peers.py`.

Runs in an environment of its own, since tfkd does not depend on PyTorch, and imports neither
tfkd nor TensorFlow. `prune_peers.py` calls `main` there, and goes on in Keras with the weights
that it gets back.

The pruning goes as in the reproduction scripts of Torch-Pruning, in 400 small steps towards a
ratio of 1, with scores made anew at each. MACs are counted after each group of channels, and it
ends as soon as enough have gone. Taylor scores come from the gradients of ten batches of 128,
made anew whenever a tenth of what was left has gone. "sparse" is its group sparsity:
GroupNormPruner, whose penalty first drives channels towards zero in a training without weight
decay.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

BATCH, BATCHES, STEPS = 128, 10, 400
PADDING = 4  # reflected pixels around an image, out of which it is cropped


def network_of(weights: dict[str, np.ndarray]) -> Any:
    """The network in PyTorch, with the weights of the Keras layers by `layer/weight`."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict()
            names = dict.fromkeys(name.split("/")[0] for name in weights)
            for name in names:
                if name.endswith("_bn"):
                    width = len(weights[f"{name}/gamma"])
                    self.layers[name] = nn.BatchNorm2d(width, eps=1e-5, momentum=0.1)
                elif name.endswith("_conv"):
                    height, _, before, after = weights[f"{name}/kernel"].shape
                    # Keras pads only the end where the stride is 2; see `normed`.
                    stride = (
                        2 if "block1_" in name and name[5] > "1" and "_2_conv" not in name else 1
                    )
                    padding = (height - 1) // 2 if stride == 1 else 0
                    self.layers[name] = nn.Conv2d(
                        before, after, height, stride, padding, bias=False
                    )
                else:
                    self.layers[name] = nn.Linear(*weights[f"{name}/kernel"].shape)
            self.blocks = [n.removesuffix("_1_conv") for n in names if n.endswith("_1_conv")]

        def normed(self, name: str, x: Any) -> Any:
            conv = self.layers[f"{name}_conv"]
            if conv.stride[0] == 2 and conv.kernel_size[0] == 3:
                x = functional.pad(x, (0, 1, 0, 1))
            return self.layers[f"{name}_bn"](conv(x))

        def forward(self, x: Any) -> Any:
            x = functional.relu(self.normed("stem", x))
            for block in self.blocks:
                wide = f"{block}_0_conv" in self.layers
                shortcut = self.normed(f"{block}_0", x) if wide else x
                inner = functional.relu(self.normed(f"{block}_1", x))
                x = functional.relu(self.normed(f"{block}_2", inner) + shortcut)
            return self.layers["logits"](torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))

    network = Network()
    with torch.no_grad():
        for name, value in tensors_of(network).items():
            value.copy_(torch.from_numpy(laid_out(weights[name])))
    return network.eval()


def tensors_of(network: Any) -> dict[str, Any]:
    """The tensors of all weights by their names in Keras."""
    found: dict[str, Any] = {}
    for name, layer in network.layers.items():
        if name.endswith("_bn"):
            found |= {f"{name}/gamma": layer.weight, f"{name}/beta": layer.bias}
            found[f"{name}/moving_mean"] = layer.running_mean
            found[f"{name}/moving_variance"] = layer.running_var
        else:
            found[f"{name}/kernel"] = layer.weight
            if layer.bias is not None:
                found[f"{name}/bias"] = layer.bias
    return found


def laid_out(value: np.ndarray) -> np.ndarray:
    """A kernel of Keras in the layout of PyTorch."""
    return np.ascontiguousarray(value.transpose(*{4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]))


def keras_layout(value: np.ndarray) -> np.ndarray:
    """A kernel of PyTorch in the layout of Keras."""
    return value.transpose(*{4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim])


def macs_of(network: Any, example: Any) -> int:
    """Multiply-accumulates of convolutions and dense layers for one image."""
    found: list[int] = []

    def count(layer: Any, inputs: Any, output: Any) -> None:
        found.append(output[0].numel() * layer.weight[0].numel())

    kinds = ("Conv2d", "Linear")
    layers = [one for one in network.layers.values() if type(one).__name__ in kinds]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    outputs_of(network, example[:1])
    for hook in hooks:
        hook.remove()
    return sum(found)


def outputs_of(network: Any, x: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return network.eval()(x).numpy()


def pruner_of(network: Any, example: Any, setting: dict[str, Any]) -> Any:
    """The pruner of Torch-Pruning for a criterion, a scope and what is left alone."""
    import torch_pruning as tp

    kept = [network.layers["logits"]]
    if setting["residual"] == "inner":
        kept += [
            conv
            for n, conv in network.layers.items()
            if n.endswith(("stem_conv", "_0_conv", "_2_conv"))
        ]
    options = {
        "global_pruning": setting["scope"] != "uniform",
        "isomorphic": setting["scope"] == "isomorphic",
        "pruning_ratio": 1.0,
        "iterative_steps": STEPS,
        "ignored_layers": kept,
    }
    if setting["criterion"] == "sparse":
        importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer="max")
        options["reg"] = setting["strength"]
        return tp.pruner.GroupNormPruner(network, example, importance, **options)
    taylor = setting["criterion"] == "taylor"
    importance = (
        tp.importance.GroupTaylorImportance()
        if taylor
        else tp.importance.GroupMagnitudeImportance(p=2)
    )
    return tp.pruner.BasePruner(network, example, importance, **options)


def prune(network: Any, pruner: Any, x: Any, y: Any, setting: dict[str, Any]) -> None:
    """Removes channels step by step until few enough multiply-accumulates are left."""
    from torch.nn import functional

    goal, scored = macs_of(network, x) * (1 - setting["macs_reduction"]), np.inf
    for _ in range(STEPS):
        macs = macs_of(network, x)
        if macs <= goal:
            return
        if setting["criterion"] == "taylor" and macs < 0.9 * scored:
            network.zero_grad()
            for start in range(0, min(len(x), BATCH * BATCHES), BATCH):
                part = slice(start, start + BATCH)
                functional.cross_entropy(network(x[part]), y[part]).backward()
            scored = macs
        for group in pruner.step(interactive=True):
            group.prune()
            if macs_of(network, x) <= goal:
                return
    raise ValueError(f"Torch-Pruning stopped at {macs_of(network, x):,} MACs, above {goal:,.0f}.")


def train(network: Any, pruner: Any, x: Any, y: Any, setting: dict[str, Any]) -> None:
    """The training under the penalty; one cycle of the rate, as all trainings here."""
    import torch
    from torch.nn import functional

    rng, count = np.random.default_rng(setting["seed"]), -(-len(x) // BATCH)
    total = setting["sparse_epochs"] * count
    warmup, peak = total // 10, setting["peak"]

    def factor(step: int) -> float:
        if step < warmup:
            return 0.05 + 0.95 * step / warmup
        return 0.5 * (1 + np.cos(np.pi * (step - warmup) / (total - warmup)))

    optimizer = torch.optim.SGD(network.parameters(), peak, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(setting["sparse_epochs"]):
        network.train()
        pruner.update_regularizer()
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            images = torch.from_numpy(augmented(x[rows].numpy(), rng))
            functional.cross_entropy(network(images), y[rows]).backward()
            pruner.regularize(network)
            optimizer.step()
            schedule.step()
    network.eval()


def augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crops out of reflected borders, and mirrors half of the images: (B, C, H, W)."""
    size, border = images.shape[-1], [(0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)]
    wide, found = np.pad(images, border, mode="reflect"), np.empty_like(images)
    for index, (row, column) in enumerate(rng.integers(0, 2 * PADDING + 1, (len(images), 2))):
        crop = wide[index, :, row : row + size, column : column + size]
        found[index] = crop[:, :, ::-1] if rng.random() < 0.5 else crop
    return found


def main(base: str, images: str, out: str, text: str) -> None:
    """Prunes, and writes the weights that are left.

    Args:
        base: `.npz` with the weights by `layer/weight`, and `logits` of the first images.
        images: `.npz` with training images `x`, scaled, (N, H, W, C), and their labels `y`.
        out: `.npz` to write: the weights, `logits` of the same images, and as JSON in
            `document` the MACs, the versions, and how far the logits of the network as it
            came were from those in `base`.
        text: the settings as JSON.
    """
    import importlib.metadata

    import torch

    setting = json.loads(text)
    torch.set_num_threads(setting["threads"] or torch.get_num_threads())
    torch.manual_seed(setting["seed"])
    with np.load(base) as packed:
        weights = dict(packed)
    expected = weights.pop("logits")
    with np.load(images) as packed:
        x = torch.from_numpy(np.ascontiguousarray(packed["x"].transpose(0, 3, 1, 2)))
        y = torch.from_numpy(packed["y"].astype("int64"))
    network, probe = network_of(weights), x[: len(expected)]
    far = float(np.abs(outputs_of(network, probe) - expected).max())
    pruner = pruner_of(network, x[:1], setting)
    if setting["criterion"] == "sparse":
        train(network, pruner, x, y, setting)
    prune(network, pruner, x, y, setting)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torch-pruning")}
    document = {"carried_over_to": far, "macs": macs_of(network, x), **versions}
    left = {n: keras_layout(t.detach().numpy()) for n, t in tensors_of(network).items()}
    logits = outputs_of(network, probe)
    np.savez(out, logits=logits, document=np.array(json.dumps(document)), **left)
