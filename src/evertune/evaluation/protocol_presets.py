"""The protocols of papers and peers by name: class order, pixels and weighting, as plain data.

Two repositories that report on "CIFAR-100, ten tasks" seldom mean the same class order, pixels and average. A preset
holds what one of them does, read in its source. Where a repository treats CIFAR in another way than its other data
sets, the plain name is its CIFAR protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evertune.errors import ConfigError, nearest

OWN_ORDER = "the data's own"
CROPPED = (256, 224)  # the short side resized to 256, the centre 224 seen: the habit of ImageNet's test pipeline


@dataclass(frozen=True)
class ProtocolPreset:
    """What one repository does between the data and the number, at 224 px; other sizes are scaled.

    Attributes
    ----------
    order_seeds
        ``numpy.random.RandomState(seed).permutation`` over the classes, one seed per repetition; empty: the data's own
        order.
    preprocessing
        ``"unit"`` (pixels stay in [0, 1]), ``"imagenet"`` or ``"cifar"`` (that mean and std), ``"native"`` (the
        checkpoint's own).
    test_crop, test_interpolation
        (short side, centre crop) in pixels; None resizes both sides and crops nothing.
    train_scale, train_ratio, train_flip, train_interpolation, train_jitter
        The random crop's share of the area and width over height, the probability of a mirror image, and the strengths
        of brightness, contrast, saturation and hue.
    weight, convention, forgetting
        How the headline accuracy weighs its test examples (every "sample" alike, or every "task"), the name of the
        convention whose numbers it prints, and its forgetting in words; None where there is none.
    tasks
        Into how many groups of equally many classes the data is split (the last may be smaller), where that is fixed.
    sources
        Where this was read, and what to know about it.
    """

    name: str
    about: str
    order_seeds: tuple[int, ...]
    preprocessing: str
    test_crop: tuple[int, int] | None
    weight: Literal["sample", "task"]
    convention: str | None
    forgetting: str | None
    sources: str
    test_interpolation: str = "bicubic"
    train_scale: tuple[float, float] = (0.05, 1.0)
    train_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    train_flip: float = 0.5
    train_interpolation: str = "bilinear"
    train_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    tasks: int | None = None
    aliases: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The name of the number this protocol states first, a key of `summary`."""
        return f"final_accuracy_{self.weight}"

    def order(self, classes: int) -> list[int]:
        """The class at each position of the (first) order.

        >>> PRESETS["pilot"].order(100)[:5]
        [68, 56, 78, 8, 23]
        """
        if not self.order_seeds:
            return list(range(classes))
        return [int(i) for i in np.random.RandomState(self.order_seeds[0]).permutation(classes)]

    def resize(self, input_size: int) -> int | None:
        """The short side before the centre crop, by the rule of these repositories: int(256 / 224 · size)."""
        return None if self.test_crop is None else self.test_crop[0] * input_size // self.test_crop[1]

    def stream_settings(self, classes: int | None = None) -> dict[str, Any]:
        """``order_seed``, and where the number of tasks is fixed and that of classes given, ``first`` and ``increment``
        (at least 2: a task of one class tells nothing apart)."""
        settings: dict[str, Any] = {"order_seed": self.order_seeds[0] if self.order_seeds else None}
        if self.tasks is not None and classes is not None:
            settings["first"] = settings["increment"] = max(2, -(-classes // self.tasks))
        return settings

    def learner_options(self, input_size: int) -> dict[str, dict[str, Any]]:
        """The arguments of ``train_view`` and ``test_view``."""
        train = {
            "size": input_size,
            "scale": self.train_scale,
            "ratio": self.train_ratio,
            "flip": self.train_flip,
            "interpolation": self.train_interpolation,
            "jitter": self.train_jitter,
        }
        test = {"size": input_size, "resize": self.resize(input_size), "interpolation": self.test_interpolation}
        return {"train_view": train, "test_view": test}

    def backbone_options(self) -> dict[str, Any]:
        """The arguments of the backbone."""
        return {"preprocessing": self.preprocessing}

    def fields(self, input_size: int = 224) -> dict[str, Any]:
        """Everything it settles, as plain values by name."""
        views = self.learner_options(input_size)
        pixels = {f"{kind.removesuffix('_view')}.{k}": v for kind, view in views.items() for k, v in view.items()}
        return {
            "class order": f"seed {' or '.join(map(str, self.order_seeds))}" if self.order_seeds else OWN_ORDER,
            "preprocessing": self.preprocessing,
            **{name: value for name, value in pixels.items() if not name.endswith(".size")},
            "convention": self.convention,
            "weight": self.weight,
            "forgetting": self.forgetting,
            "tasks": self.tasks,
        }


def get_preset(name: str) -> ProtocolPreset:
    """The preset of this name or alias; ConfigError with the nearest name where there is none."""
    wanted = name.lower().replace("_", "-")
    for preset in PRESETS.values():
        if wanted in (preset.name, *preset.aliases):
            return preset
    raise ConfigError(f"No protocol is called {name!r}. {nearest(wanted, PRESETS)}")


_ALL = (
    ProtocolPreset(
        "native",
        "the library's own habits: the checkpoint's mean and std, nothing cropped at test time",
        (1993,), "native", None, "sample", None, None,
        "Claims nothing about anybody else's numbers. Mean and std are the checkpoint's, from timm; the share that "
        "timm would crop away (crop_pct) is not.",
    ),
    ProtocolPreset(
        "pilot",
        "LAMDA-PILOT, for every data set: SimpleCIL, APER, EASE, SLCA ...",
        (1993,), "unit", CROPPED, "sample", "pilot", "best stage, the last included; on request",
        "LAMDA-PILOT utils/data.py (build_transform), trainer.py; each accuracy is rounded to two digits there.",
        aliases=("pilot-1993", "aper", "simple-cil", "ease"),
    ),
    ProtocolPreset(
        "pilot-coda",
        "CODA-Prompt as LAMDA-PILOT runs it",
        (0,), "unit", None, "sample", "pilot", "best stage, the last included; on request",
        "LAMDA-PILOT utils/data.py (build_transform_coda_prompt), exps/coda_prompt.json. On data sets named "
        "imagenet... it resizes to 256 and crops.",
        test_interpolation="bilinear", train_scale=(0.08, 1.0),
    ),
    ProtocolPreset(
        "ranpac",
        "RanPAC on CIFAR-100",
        (1993,), "unit", None, "task", "ranpac", None,
        "RanPAC utils/data.py (build_transform with isCifar), trainer.py. The torch seed is always 1: seeds change the "
        "order of classes and nothing else.",
    ),
    ProtocolPreset(
        "ranpac-photos",
        "RanPAC on every other data set",
        (1993,), "unit", CROPPED, "task", "ranpac", None,
        "RanPAC utils/data.py (build_transform), trainer.py. DomainNet, CDDB and CORe50 arrive by domain.",
    ),
    ProtocolPreset(
        "safe",
        "SAFE on CIFAR-100",
        (1993,), "unit", None, "sample", "safe", None,
        "SAFE utils/data.py, trainer.py: RanPAC's pixels, but the accuracy it returns is over all test images.",
    ),
    ProtocolPreset(
        "safe-photos",
        "SAFE on every other data set",
        (1993,), "unit", CROPPED, "sample", "safe", None,
        "SAFE utils/data.py, trainer.py.",
    ),
    ProtocolPreset(
        "ntk-cl",
        "NTK-CL, for every data set, five orders",
        (0, 1, 2, 3, 4), "unit", CROPPED, "sample", "ntk-cl", None,
        "NTK-CL dataloader/datasets.py, trainer.py, main.py. Its tables give the mean over the stages "
        "beside the final accuracy; sizes of tasks differ by data set (10 + 10 on CIFAR-100).",
    ),
    ProtocolPreset(
        "hide-pet",
        "HiDe-PET on CIFAR-100",
        (), "cifar", CROPPED, "task", "hide-pet", "best stage, the last included",
        "HiDe-PET datasets.py (build_cifar_transform), engines/. The scale (0.05, 1) written there is never used: "
        "torchvision's default holds.",
        train_scale=(0.08, 1.0), train_interpolation="bicubic", train_jitter=(63 / 255, 0.0, 0.0, 0.0), tasks=10,
    ),
    ProtocolPreset(
        "hide-pet-photos",
        "HiDe-PET on every other data set",
        (), "unit", CROPPED, "task", "hide-pet", "best stage, the last included",
        "HiDe-PET datasets.py (build_transform), engines/: both resizes are torchvision's default, bilinear.",
        test_interpolation="bilinear", train_scale=(0.08, 1.0), tasks=10,
    ),
    ProtocolPreset(
        "coda",
        "CODA-Prompt's own repository, its first seed",
        (), "unit", None, "task", None, None,
        "CODA-Prompt dataloaders/utils.py, trainer.py. Seed 0 keeps the data's order; later seeds shuffle by Python's "
        "random, which no seed of numpy gives.",
        test_interpolation="bilinear", train_scale=(0.08, 1.0), tasks=10, aliases=("coda-prompt",),
    ),
    ProtocolPreset(
        "mammoth",
        "Mammoth's default for seq-cifar100-224",
        (), "imagenet", None, "task", "mammoth", "best stage, the last included; on request",
        "Mammoth datasets/configs/seq-cifar100-224/default.yaml, utils/metrics.py; --permute_classes is off unless "
        "asked for.",
        train_scale=(0.08, 1.0), train_interpolation="bicubic", tasks=10,
    ),
    ProtocolPreset(
        "mammoth-unit",
        "Mammoth's L2P and CODA-Prompt on seq-cifar100-224",
        (), "unit", None, "task", "mammoth", "best stage, the last included; on request",
        "Mammoth datasets/configs/seq-cifar100-224/l2p.yaml and coda_prompt.yaml, utils/metrics.py.",
        test_interpolation="bilinear", train_scale=(0.08, 1.0), tasks=10,
    ),
    ProtocolPreset(
        "libcontinual",
        "LibContinual's L2P with ViT on CIFAR-100",
        (1993,), "unit", CROPPED, "sample", "libcontinual", "a form of its own",
        "LibContinual config/l2p-vit-cifar100-b10-10-10.yaml, core/data/dataloader.py. 1993 is the seed of its header; "
        "a configuration may override it (this one: 2). Classes are ordered by folder name before the permutation.",
    ),
)  # fmt: skip

PRESETS: dict[str, ProtocolPreset] = {preset.name: preset for preset in _ALL}
"""All presets by name."""
