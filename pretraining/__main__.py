"""Makes the embedded backbone again: ``python -m pretraining`` (about 90 minutes on one core; ``make backbone``).

Supervised classification of the formula-driven images of :mod:`pretraining.images`, in two stages: pictures of all
kinds, then mostly characters written by many hands, with a cosine classifier, so that class means of its features mean
something. Nothing is read but this code, so the weights carry nobody else's licence. Half of the patches are dropped
for most steps (as in PatchDropout, Liu et al., WACV 2023), which halves the cost; the last steps of a stage see all of
them. One thread and fixed seeds: the same machine and PyTorch give the same file again.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.layers.config import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from pretraining.images import SCRIPTS, FormulaImages

ARCHITECTURE: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}
TARGET = Path(__file__).parents[1] / "src" / "evertune" / "backbones" / "embedded.safetensors"
BATCH = 128


@dataclass(frozen=True)
class Stage:
    """``half`` optimiser steps on half of the patches, then ``full`` on all; linear warm-up, cosine to zero."""

    images: dict[str, Any]
    half: int
    full: int
    rate: float
    warm: int
    cosine: bool
    fused_attention: bool  # PyTorch's; in bfloat16 on a CPU it is the slower one, which the first stage did not know


STAGES = (
    Stage({"class_seed": 0, "seed": 1}, 8000, 600, 1e-3, 400, cosine=False, fused_attention=True),
    Stage(
        {
            "class_seed": 10,
            "seed": 11,
            "families": SCRIPTS,
            "hand": 0.12,
            "pen": 0.22,
            "coarse": (0.4, 0.5, 0.65),
        },
        1600,
        1000,
        6e-4,
        100,
        cosine=True,
        fused_attention=False,
    ),
)


class CosineClassifier(nn.Module):
    """20 · cos(x, w)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return 20 * F.normalize(x.float(), dim=-1) @ F.normalize(self.weight, dim=-1).T


def train(stage: Stage, start: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The weights, without the classifier, after a stage that begins at ``start``."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    set_fused_attn(stage.fused_attention)
    images = FormulaImages(**stage.images)
    model = VisionTransformer(**ARCHITECTURE, num_classes=images.n_classes, patch_drop_rate=0.5)
    if stage.cosine:
        model.head = CosineClassifier(ARCHITECTURE["embed_dim"], images.n_classes)  # type: ignore[assignment]
    if start is not None:
        model.load_state_dict({k: v.float() for k, v in start.items()}, strict=False)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=stage.rate,
        betas=(0.9, 0.98),
    )
    total = stage.half + stage.full
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / stage.warm, 0.5 * (1 + math.cos(math.pi * s / total)))
    )
    model.train()
    started, hits, loss_sum = time.perf_counter(), 0.0, 0.0
    for step in range(total):
        if step == stage.half:
            model.patch_drop = torch.nn.Identity()  # type: ignore[assignment]
        x, y = images.draw(BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x * 2 - 1)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        hits += (logits.argmax(1) == y).float().mean().item()
        loss_sum += loss.item()
        if (step + 1) % 100 == 0:
            spent = time.perf_counter() - started
            print(
                f"step {step + 1}/{total}  loss {loss_sum / 100:.3f}  accuracy {hits:.1f} %  {spent:.0f} s", flush=True
            )
            hits, loss_sum = 0.0, 0.0
    return {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.startswith("head.")}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pretraining", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--start", type=Path, help="weights of an earlier stage to go on from")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    weights = load_file(arguments.start) if arguments.start else None
    for number in arguments.stages:
        weights = train(STAGES[number - 1], weights)
    assert weights is not None
    save_file(weights, arguments.out, metadata={"licence": "Apache-2.0", "images": "formula-driven, see pretraining/"})
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
