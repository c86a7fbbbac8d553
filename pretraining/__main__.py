"""Makes the embedded backbone again: ``python -m pretraining`` (about 70 minutes on one core; ``make backbone``).

Supervised classification of the formula-driven images of :mod:`pretraining.images`. Nothing is read but this code, so
the weights carry nobody else's licence. Half of the patches are dropped while training (as in PatchDropout, Liu et al.,
WACV 2023), which halves the cost; the last steps see all of them. One thread and fixed seeds: the same machine and
PyTorch give the same file again.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from pretraining.images import FormulaImages

ARCHITECTURE: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}
TARGET = Path(__file__).parents[1] / "src" / "evertune" / "backbones" / "embedded.safetensors"


def train(steps: int, full_steps: int, batch: int, rate: float, seed: int) -> VisionTransformer:
    """``steps`` optimiser steps on half of the patches, then ``full_steps`` on all; linear warm-up, cosine to zero."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    images = FormulaImages(class_seed=seed, seed=seed + 1)
    model = VisionTransformer(**ARCHITECTURE, num_classes=images.n_classes, patch_drop_rate=0.5)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.98)
    )
    total, warm = steps + full_steps, min(400, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 * (1 + math.cos(math.pi * s / total)))
    )
    model.train()
    started, hits, loss_sum = time.perf_counter(), 0.0, 0.0
    for step in range(total):
        if step == steps:
            model.patch_drop = torch.nn.Identity()  # type: ignore[assignment]
        x, y = images.draw(batch)
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
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--full-steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    model = train(arguments.steps, arguments.full_steps, arguments.batch, arguments.rate, arguments.seed)
    model.reset_classifier(0)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, arguments.out, metadata={"licence": "Apache-2.0", "images": "formula-driven, see pretraining/"})
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
