"""Settings of the runs of `prune_cifar.py`, and the runs of each study."""

from __future__ import annotations

import dataclasses
from typing import Any

METHODS = ("fd-skd", "hard-skd", "soft-skd", "fd", "hard", "soft", "none", "none-skd")
STUDIES = ("main", "lambda", "interval", "share", "anneal", "criteria", "reading", "smoothness")
# Ways to decay, from the smoothest to cutting at once: what of a setting they change.
EACH_STEP = 1e-9
WAYS = (
    {"method": "fd-skd", "interval": EACH_STEP, "reading": "relative", "anneal": "tenth"},
    {"method": "fd-skd", "interval": EACH_STEP, "reading": "relative"},
    {"method": "fd-skd", "interval": 0.25, "reading": "relative"},
    {"method": "fd-skd", "interval": 0.0625, "share": 0.25},
    {"method": "fd-skd", "interval": 0.125, "share": 0.25},
    {"method": "fd-skd", "interval": 0.25, "share": 0.25},
    {"method": "fd-skd", "interval": 0.25},
    {"method": "fd-skd", "interval": 0.5, "share": 0.25},
    {"method": "soft-skd", "interval": 0.25},
    {"method": "hard-skd"},
)
CRITERIA = ("l1", "l2", "geometric_median", "random")


@dataclasses.dataclass(frozen=True)
class Setting:
    """All that makes one run what it is."""

    method: str = "fd-skd"
    seed: int = 0
    base: str = "base"
    epochs: int = 10
    images: int = 20_000
    peak: float = 0.02
    macs_reduction: float | None = 0.5
    filter_rate: float | None = None
    residual: str = "inner"
    criterion: str = "l2"
    share: float = 0.5
    interval: float = 1.0
    anneal: str = "linear"
    reading: str = "compounding"
    lam: float = 1.0
    temperature: float = 4.0

    @property
    def kind(self) -> str:
        """The method without its teacher: fd, soft, hard or none."""
        return self.method.removesuffix("-skd")

    @property
    def distils(self) -> bool:
        return self.method.endswith("-skd")

    @property
    def decay_epochs(self) -> int:
        """Epochs before the cut: a part of all, at least one, and one is left after it."""
        return min(max(round(self.share * self.epochs), 1), self.epochs - 1)

    def plain(self) -> Setting:
        """The same run; what its method does not look at is as by default."""
        unused: tuple[str, ...] = () if self.distils else ("lam", "temperature")
        if self.kind != "fd":
            unused += ("anneal", "reading")
        if self.kind not in ("fd", "soft"):
            unused += ("share", "interval")
        if self.kind == "none":
            unused += ("macs_reduction", "filter_rate", "residual", "criterion")
        return dataclasses.replace(self, **{key: getattr(Setting, key) for key in unused})

    @property
    def name(self) -> str:
        """`base-fd-skd-lam0.3-s0`: the run's file is called so."""
        values = dataclasses.asdict(self.plain())
        default = dataclasses.asdict(Setting())
        changed = [k for k in values if k not in ("base", "method", "seed")]
        words = [f"{k}{values[k]}" for k in changed if values[k] not in (None, default[k])]
        return "-".join([self.base, self.method, *words, f"s{self.seed}"])


def settings_of(study: str, start: Setting, args: Any) -> list[Setting]:
    """The runs of a study on one base, the first seed of all of them first."""
    seeds = args.seeds or (3 if study == "main" else 1)
    change: list[dict[str, Any]]
    if study == "main":
        change = [{"method": method} for method in args.methods]
    elif study == "lambda":
        grid = [(lam, t) for lam in args.lams for t in args.temperatures]
        change = [{"method": "fd"}]
        change += [{"method": "fd-skd", "lam": lam, "temperature": t} for lam, t in grid]
    elif study == "smoothness":
        change = list(WAYS)
    elif study == "criteria":
        short = {"method": "fd", "epochs": args.criteria_epochs, "macs_reduction": None}
        change = [{**short, "method": "none"}]
        for rate in (0.1, 0.3, 0.5, 0.7):
            change += [{**short, "filter_rate": rate, "criterion": one} for one in CRITERIA]
    else:
        values: dict[str, tuple[Any, ...]] = {
            "interval": (0.25, 0.5, 1.0, 2.0),
            "share": (0.2, 0.4, 0.5, 0.6, 0.8),
            "anneal": ("linear", "sigmoid", "cosine"),
            "reading": ("compounding", "relative"),
        }
        change = [{"method": args.ablate, study: value} for value in values[study]]
    runs = [dataclasses.replace(start, **c, seed=s) for s in range(seeds) for c in change]
    return [run.plain() for run in runs]
