"""One optimisation step of each session on real weights against the published loops (``safe_training_steps.npz``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evertune.backbones import Passes, TimmViT, load_backbone
from evertune.engine.optimizer import make_optimizer
from evertune.methods import SAFE, Batch, Generators, Optimise, TaskInfo
from evertune.tuning import Tuning

pytestmark = pytest.mark.golden

Arrays = Mapping[str, np.ndarray]
NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
FIRST = TaskInfo(index=0, present=tuple(range(5)), new=tuple(range(5)), known=0, size=7)
SECOND = TaskInfo(index=1, present=(5, 6, 7), new=(5, 6, 7), known=5, size=7)
OPTIONS: dict[str, Any] = {"features": 8, "tuning": "adapter", "tuning.dropout": 0.0}


class Setting(NamedTuple):
    """Everything in one precision."""

    arrays: Arrays
    adapter: Arrays
    backbone: TimmViT
    dtype: torch.dtype

    @property
    def exact(self) -> bool:
        return self.dtype == torch.float64

    def tensor(self, name: str) -> Tensor:
        stored = torch.from_numpy(self.arrays[name])
        return stored.to(self.dtype) if stored.is_floating_point() else stored

    def wanted(self, name: str) -> np.ndarray:
        return self.arrays[name + "_f64" * self.exact]


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["f32", "f64"])
def setting(request: pytest.FixtureRequest, shared: Path) -> Setting:
    arrays, adapter = (
        dict(np.load(shared / f"golden/{name}.npz", allow_pickle=False))
        for name in ("safe_training_steps", "safe_tuning_adapter")
    )
    backbone = load_backbone(
        NAME, weights=shared / f"data/weights/{NAME}.f32.safetensors", input_size=96, preprocessing="unit"
    )
    assert isinstance(backbone, TimmViT)
    backbone.vit.pos_embed.data = torch.from_numpy(arrays["pos_embed"])
    return Setting(arrays, adapter, backbone.to(request.param), request.param)


def fill(tuning: Tuning, adapter: Arrays, factor: float = 1.0) -> None:
    """The recorded adapters, times ``factor`` in float32."""
    for i in tuning.indices:
        block = tuning.block(i)
        for part in ("down", "up"):
            for kind in ("weight", "bias"):
                value = np.float32(factor) * adapter[f"block{i}.adapter.{part}.{kind}"]
                getattr(block, f"{part}_{kind}").data.copy_(torch.from_numpy(value))


def make(setting: Setting, **options: Any) -> SAFE:
    config = SAFE.config_type.make("released", **OPTIONS, **options)
    shape = setting.backbone.shape
    return SAFE(config, shape, shape.width, Generators()).to(setting.dtype)  # type: ignore[arg-type]


def batch(setting: Setting, session: str) -> Batch:
    labels = setting.tensor(f"{session}.labels")
    images = setting.tensor("images")
    if setting.exact:  # passes hand on float32, where the recorded tolerances are finer

        def passes(tuning: Tuning | None = None) -> Tensor:
            with torch.set_grad_enabled(tuning is not None and not tuning.frozen):
                return setting.backbone(images, tuning)

        return Batch(passes, labels, torch.arange(7))  # type: ignore[arg-type]
    return Batch(Passes(setting.backbone, images), labels, torch.arange(7))


def step(setting: Setting, method: SAFE, task: TaskInfo, tuning: Tuning, head: nn.Module) -> dict[str, Tensor]:
    """One step of the method's own training phase by the engine's own optimiser; compares gradients and outcome."""
    session = f"session{task.index + 1}"
    phase = next(p for p in method.phases(task) if isinstance(p, Optimise))
    method.train()
    parameters: Iterable[nn.Parameter] = [p for p in phase.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, phase.recipe)
    terms = dict(phase.loss(batch(setting, session)))
    torch.stack(list(terms.values())).sum().backward()
    places = {
        "block0.adapter.down.weight": tuning.block(0).down_weight,  # type: ignore[union-attr]
        "block5.adapter.down.bias": tuning.block(5).down_bias,  # type: ignore[union-attr]
        "block11.adapter.up.weight": tuning.block(11).up_weight,  # type: ignore[union-attr]
        "head.weight": head.weight,
        "head.sigma": head.sigma,
    }
    for name, parameter in places.items():
        wanted = setting.wanted(f"{session}.grad.{name}")
        atol = (1e-9 if setting.exact else 1e-4) * np.abs(wanted).max()
        np.testing.assert_allclose(parameter.grad.reshape(wanted.shape), wanted, rtol=0, atol=atol, err_msg=name)
    optimizer.step()
    for name, parameter in places.items():
        wanted = setting.wanted(f"{session}.after_sgd_step.{name}")
        np.testing.assert_allclose(parameter.detach().reshape(wanted.shape), wanted, rtol=0, atol=1e-5, err_msg=name)
    return terms


def value(setting: Setting, got: Tensor, name: str) -> None:
    np.testing.assert_allclose(got.item(), setting.wanted(name), rtol=1e-9 if setting.exact else 1e-4)


def test_first_session(setting: Setting) -> None:
    method = make(setting, lambda_diag=0.01, lambda_rdn=10.0)
    fill(method.slow, setting.adapter)
    method.head_slow.grow(setting.tensor("session1.head.weight"))
    assert method.head_slow.sigma.item() == setting.arrays["session1.head.sigma"]
    terms = step(setting, method, FIRST, method.slow, method.head_slow)
    value(setting, terms["classification"], "session1.L_cls")
    value(setting, terms["diagonal"] + terms["redundancy"], "session1.transfer_weighted")


def test_later_session(setting: Setting) -> None:
    method = make(setting)
    fill(method.fast, setting.adapter)
    fill(method.slow, setting.adapter, float(setting.arrays["session2.slow_adapter_multiplier"]))
    for head, name in ((method.head_slow, "head_slow"), (method.head_fast, "head_fast")):
        head.grow(setting.tensor(f"session2.{name}.weight"))
        head.sigma.data.copy_(setting.tensor(f"session2.{name}.sigma")[0])
    method.known.fill_(int(setting.arrays["session2.n_known_classes"]))
    method.restored()
    kept = {name: value.clone() for name, value in method.slow.state_dict().items()}
    terms = step(setting, method, SECOND, method.fast, method.head_fast)
    value(setting, terms["classification"], "session2.L_cls")
    value(setting, terms["alignment"] / method.config.lambda_cos, "session2.L_cos_sum")
    value(setting, terms["slow to fast"], "session2.L_s2f")
    value(setting, terms["fast to slow"], "session2.L_f2s")
    assert all(p.grad is None for p in (*method.slow.parameters(), *method.head_slow.parameters()))
    assert all(torch.equal(v, kept[name]) for name, v in method.slow.state_dict().items())
