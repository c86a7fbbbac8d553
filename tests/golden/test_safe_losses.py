"""SAFE's losses, their gradients and its first step against the published modules' numbers (``safe_losses.npz``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape
from evertune.engine.optimizer import make_optimizer
from evertune.methods import SAFE, Batch, Generators, Optimise, TaskInfo
from evertune.methods.losses import alignment, cross_classification, transfer

pytestmark = pytest.mark.golden

Arrays = Mapping[str, np.ndarray]
SHAPE = Shape(width=48, depth=1, heads=3, hidden=96, tokens=5)
FIRST = TaskInfo(index=0, present=tuple(range(6)), new=tuple(range(6)), known=0, size=12)
LATER = TaskInfo(index=1, present=(6, 7, 8, 9), new=(6, 7, 8, 9), known=6, size=12)
CASES = ("nonzero_rows", "zero_rows", "later_session")
PRESETS = {"cifar": "released", "imagenet_a": "released-imagenet-a"}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


@pytest.fixture(scope="module")
def arrays(shared: Path) -> Arrays:
    return dict(np.load(shared / "golden/safe_losses.npz", allow_pickle=False))


class Golden:
    """Inputs as leaves of a given precision, and the recorded outputs in that precision."""

    def __init__(self, arrays: Arrays, dtype: torch.dtype) -> None:
        self.arrays, self.dtype, self.exact = arrays, dtype, dtype == torch.float64

    def tensor(self, name: str) -> Tensor:
        stored = torch.from_numpy(self.arrays[name])
        return stored.to(self.dtype) if stored.is_floating_point() else stored

    def leaf(self, name: str) -> Tensor:
        return self.tensor(name).clone().requires_grad_()

    def wanted(self, name: str) -> np.ndarray:
        return self.arrays[name + "_f64" * self.exact]

    def value(self, got: Tensor, name: str) -> None:
        """Tolerance L."""
        rtol, atol = (1e-10, 1e-12) if self.exact else (1e-5, 1e-6)
        np.testing.assert_allclose(got.detach().numpy(), self.wanted(name), rtol=rtol, atol=atol)

    def gradient(self, got: Tensor | None, name: str) -> None:
        """Tolerance G, row by row: the rows of a head may lie twelve orders of magnitude apart."""
        wanted = np.atleast_2d(self.wanted(name))
        got_rows = np.zeros_like(wanted) if got is None else np.atleast_2d(got.detach().numpy())
        rows = wanted if wanted.shape[0] == 10 else wanted.reshape(1, -1)
        atol = (1e-9 if self.exact else 1e-4) * np.abs(rows).max(1, keepdims=True) + (1e-14 if self.exact else 1e-7)
        assert (np.abs(got_rows.reshape(rows.shape) - rows) <= atol).all(), name


def method_of(golden: Golden, preset: str, **options: Any) -> SAFE:
    config = SAFE.config_type.make(preset, tuning="lora", features=8, **options)
    return SAFE(config, SHAPE, SHAPE.width, Generators()).to(golden.dtype)  # type: ignore[arg-type]


def batch(features: Callable[[Any], Tensor], labels: Tensor) -> Batch:
    return Batch(lambda tuning=None: features(tuning), labels, torch.arange(len(labels)))  # type: ignore[arg-type]


def run(method: SAFE, task: TaskInfo, name: str) -> None:
    with torch.no_grad():
        next(p for p in method.phases(task) if p.name == name).run()  # type: ignore[union-attr]


# -- session 1 ---------------------------------------------------------------------------------------------------------


@DTYPES
def test_transfer(arrays: Arrays, dtype: torch.dtype) -> None:
    golden = Golden(arrays, dtype)
    for term, weights in (("L_diag", (1, 0)), ("L_rdn", (0, 1)), ("L_transfer_0.01_10", (0.01, 10))):
        slow = golden.leaf("slow_features")
        diagonal, redundancy = transfer(slow, golden.tensor("ptm_features"))
        loss = weights[0] * diagonal + weights[1] * redundancy
        loss.backward()
        golden.value(loss, f"session1.{term}")
        golden.gradient(slow.grad, f"session1.grad_slow_features.{term}")


@DTYPES
@pytest.mark.parametrize("weights", PRESETS)
def test_first_session(arrays: Arrays, weights: str, dtype: torch.dtype) -> None:
    """The method's own loss under each released preset."""
    golden = Golden(arrays, dtype)
    method = method_of(golden, PRESETS[weights])
    method.head_slow.grow(golden.tensor("head_slow.weight")[:6])
    slow = golden.leaf("slow_features")
    given = batch(
        lambda t: slow if t is method.slow else golden.tensor("ptm_features"), golden.tensor("labels_session1")
    )
    terms = method.slow_loss(given)
    sum(terms.values()).backward()  # type: ignore[union-attr]
    golden.value(method.head_slow(slow), "session1.logits")
    golden.value(terms["classification"], "session1.L_cls")
    golden.value(sum(terms.values()), f"session1.total_{weights}")  # type: ignore[arg-type]
    golden.gradient(slow.grad, f"session1.total_{weights}.grad_slow_features")
    golden.gradient(method.head_slow.weight.grad, f"session1.total_{weights}.grad_head.weight")
    golden.gradient(method.head_slow.sigma.grad, f"session1.total_{weights}.grad_head.sigma")


# -- later sessions ----------------------------------------------------------------------------------------------------


def later(golden: Golden, case: str, preset: str) -> SAFE:
    """The method at the start of a later session, its new rows made by its own phases under ``new_rows``."""
    method = method_of(golden, preset)
    slow, fast = golden.tensor("head_slow.weight"), golden.tensor("head_fast.weight")
    if case == "later_session":  # the first session brought three classes, the second three, this one four
        method.head_slow.grow(slow[:3])
        method.head_fast.grow(slow[:3])
        run(method, TaskInfo(1, (3, 4, 5), (3, 4, 5), 3, 12), "grow heads")
    else:
        method.head_slow.grow(slow[:6])
        method.head_fast.grow(fast[:6])
    run(method, LATER, "grow heads")
    assert not method.head_slow.weight[6:].any()
    assert not method.head_fast.weight[6:].any()
    if case == "nonzero_rows":
        method.head_slow.weight.data.copy_(slow)
    if case != "zero_rows":
        method.head_fast.weight.data.copy_(fast)
    method.head_slow.sigma.data.fill_(float(golden.tensor("head_slow.sigma")))
    method.head_fast.sigma.data.copy_(golden.tensor("head_fast.sigma")[0])
    method.restored()
    return method


@DTYPES
@pytest.mark.parametrize("case", CASES)
def test_terms(arrays: Arrays, case: str, dtype: torch.dtype) -> None:
    golden = Golden(arrays, dtype)
    assert int(golden.tensor("n_known_classes")) == LATER.known
    where = f"fast.{case}."

    def fresh() -> tuple[SAFE, Tensor, Tensor, Tensor]:
        return (
            later(golden, case, "released"),
            golden.leaf("fast_features"),
            golden.tensor("slow_features"),
            golden.tensor("labels_new"),
        )

    def classify(m: SAFE, v: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(m.head_fast(v), y)

    def align(m: SAFE, v: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return alignment(v, u, reduction="sum")

    def slow_to_fast(m: SAFE, v: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return cross_classification(u, m.head_slow.weight[:6], y, m.head_fast.weight, m.head_fast.sigma)

    def fast_to_slow(m: SAFE, v: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return cross_classification(v, m.head_fast.weight[:6], y, m.head_slow.weight, m.head_slow.sigma)

    for name, term in {"L_cls": classify, "L_cos_sum": align, "L_s2f": slow_to_fast, "L_f2s": fast_to_slow}.items():
        method, v, u, y = fresh()
        loss = term(method, v, u, y)
        loss.backward()
        golden.value(loss, where + name)
        golden.gradient(v.grad, where + f"grad_fast_features.{name}")
        golden.gradient(method.head_fast.weight.grad, where + f"grad_head_fast.weight.{name}")
        golden.gradient(method.head_fast.sigma.grad, where + f"grad_head_fast.sigma.{name}")
        assert method.head_slow.weight.grad is None and method.head_slow.sigma.grad is None
    method, v, *_ = fresh()
    golden.value(method.head_fast(v), where + "logits_fast")


@DTYPES
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weights", PRESETS)
def test_later_session(arrays: Arrays, case: str, weights: str, dtype: torch.dtype) -> None:
    """The method's own loss under each released preset, and the first step of the engine's optimiser."""
    golden = Golden(arrays, dtype)
    method = later(golden, case, PRESETS[weights])
    v = golden.leaf("fast_features")
    given = batch(lambda t: v if t is method.fast else golden.tensor("slow_features"), golden.tensor("labels_new"))
    loss = torch.stack(list(method.fast_loss(given).values())).sum()
    loss.backward()
    where = f"fast.{case}.total_{weights}"
    golden.value(loss, where)
    golden.gradient(v.grad, where + ".grad_fast_features")
    golden.gradient(method.head_fast.weight.grad, where + ".grad_head_fast.weight")
    if weights == "cifar":
        phase = next(p for p in method.phases(LATER) if isinstance(p, Optimise))
        weight: nn.Parameter = method.head_fast.weight
        make_optimizer([weight], phase.recipe).step()
        after = golden.wanted(where + ".head_fast.weight_after_first_sgd_step")
        error = np.linalg.norm(weight.detach().numpy() - after, axis=1) / np.linalg.norm(after, axis=1)
        assert error.max() <= 1e-4
        assert (np.linalg.norm(after[6:], axis=1) > 1e10).all() == (case == "zero_rows")


def test_a_zero_row_of_the_slow_head_costs_a_constant(arrays: Arrays) -> None:
    """Deviation D1: a prototype of zeros has the same score for every class, so it adds ln K to the sum of L_s2f."""
    golden = Golden(arrays, torch.float64)
    method = later(golden, "later_session", "released")
    rows = F.cross_entropy(method.head_fast(method.head_slow.weight[3:6]), torch.tensor([3, 4, 5]), reduction="none")
    np.testing.assert_allclose(rows.detach(), np.log(10), rtol=1e-12)
