"""RanPAC's and SAFE's ridge heads against the published modules' numbers (``ranpac_ridge.npz``, ``safe_ridge.npz``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import evertune.heads.ridge as ridge_module
from evertune.backbones import Shape
from evertune.heads import PrototypeHead, RidgeHead, project
from evertune.methods import Batch, Collect, Generators, Method, Solve, TaskInfo, get_method
from evertune.statistics import Gram, select_ridge

pytestmark = pytest.mark.golden

Arrays = Mapping[str, np.ndarray]
SHAPE = Shape(width=48, depth=1, heads=3, hidden=96, tokens=5)
SESSIONS = (
    TaskInfo(index=0, present=(0, 1, 2, 3), new=(0, 1, 2, 3), known=0, size=170),
    TaskInfo(index=1, present=(4, 5, 6), new=(4, 5, 6), known=4, size=130),
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


@pytest.fixture(scope="module")
def ranpac(shared: Path) -> Arrays:
    return dict(np.load(shared / "golden/ranpac_ridge.npz", allow_pickle=False))


@pytest.fixture(scope="module")
def safe(shared: Path) -> Arrays:
    return dict(np.load(shared / "golden/safe_ridge.npz", allow_pickle=False))


def stored(arrays: Arrays, name: str, dtype: torch.dtype) -> np.ndarray:
    return arrays[name + ("_f64" if dtype == torch.float64 else "")]


def close(got: Tensor, wanted: np.ndarray, dtype: torch.dtype, f32: float = 1e-4, f64: float = 1e-9) -> None:
    """Equal relative to the largest entry (tolerance R)."""
    atol = (f64 if dtype == torch.float64 else f32) * np.abs(wanted).max()
    np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=0, atol=atol)


def split(labels: np.ndarray, fit_rows: int) -> tuple[Tensor, Tensor]:
    return torch.arange(fit_rows), torch.arange(fit_rows, len(labels))


def stored_order(labels: Tensor, fraction: float, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """The recorded split: rows stand in the order in which the release drew them."""
    return split(labels.numpy(), int((1 - fraction) * len(labels)))


def batch(passes: Callable[..., Tensor], labels: np.ndarray) -> Batch:
    return Batch(passes, torch.from_numpy(labels), torch.arange(len(labels)))  # type: ignore[arg-type]


def arrive(method: Method, task: TaskInfo, passes: Callable[..., Tensor], labels: np.ndarray) -> None:
    """Every phase of ``task`` but its training."""
    for phase in method.phases(task):
        match phase:
            case Collect():
                phase.update(batch(passes, labels))
            case Solve():
                with torch.no_grad():
                    phase.run()
    method.tasks_seen += 1


def make(name: str, preset: str, **options: Any) -> Any:
    method = get_method(name)
    config = method.config_type.make(preset, features=256, tuning="lora", **options)
    return method(config, SHAPE, SHAPE.width, Generators())


# -- RanPAC ------------------------------------------------------------------------------------------------------------


def test_first_row_of_h(ranpac: Arrays) -> None:
    row = torch.from_numpy(ranpac["features_session1"][:1])
    R = torch.from_numpy(ranpac["R"])
    np.testing.assert_allclose(project(row.double(), R)[0], ranpac["session1.H_first_row_f64"], rtol=1e-10)
    np.testing.assert_allclose(project(row, R)[0], ranpac["session1.H_first_row_f64"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("session", [1, 2])
@pytest.mark.parametrize("reference", ["session{}.ridge_losses_f64", "session{}.ridge_losses_dual_f64"])
def test_selection_losses(ranpac: Arrays, session: int, reference: str) -> None:
    phi = torch.from_numpy(ranpac[f"features_session{session}"]).double()
    labels = ranpac[f"labels_session{session}"]
    R, grid = torch.from_numpy(ranpac["R"]), ranpac["ridge_grid"]
    fit, held = split(labels, int(ranpac["fit_rows"][session - 1]))
    chosen = select_ridge(phi, torch.from_numpy(labels), grid, fit, held, lambda x: project(x, R))
    # Ours averages over the classes that occur, the release over all seven columns.
    losses = np.array(chosen.losses) * len(np.unique(labels)) / 7
    wanted = ranpac[reference.format(session)]
    for low, rtol in ((0.0, 1e-4), (1e-5, 1e-6), (1.0, 1e-9)):
        np.testing.assert_allclose(losses[grid >= low], wanted[grid >= low], rtol=rtol)
    assert chosen.strength == ranpac[f"session{session}.ridge"] == ranpac[f"session{session}.ridge_f64"]


@pytest.mark.parametrize("session", [1, 2])
def test_selection_in_float32_features(ranpac: Arrays, session: int) -> None:
    phi, labels = (ranpac[f"{part}_session{session}"] for part in ("features", "labels"))
    R, grid = torch.from_numpy(ranpac["R"]), ranpac["ridge_grid"]
    fit, held = split(labels, int(ranpac["fit_rows"][session - 1]))
    chosen = select_ridge(torch.from_numpy(phi), torch.from_numpy(labels), grid, fit, held, lambda x: project(x, R))
    losses = np.array(chosen.losses) * len(np.unique(labels)) / 7
    np.testing.assert_allclose(losses[grid >= 10], ranpac[f"session{session}.ridge_losses"][grid >= 10], rtol=1e-3)
    assert chosen.strength == ranpac[f"session{session}.ridge"]


@DTYPES
def test_ranpac_heads(ranpac: Arrays, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method itself, from features to scores, its strength chosen on the recorded split."""
    monkeypatch.setattr(ridge_module, "holdout", stored_order)
    method = make("ranpac", "released", epochs=0)
    method.R.copy_(torch.from_numpy(ranpac["R"]))
    test = torch.from_numpy(ranpac["features_test"]).to(dtype)
    for number, task in enumerate(SESSIONS, 1):
        phi = torch.from_numpy(ranpac[f"features_session{number}"]).to(dtype)
        arrive(method, task, lambda _=None, phi=phi: phi, ranpac[f"labels_session{number}"])
        where = f"session{number}."
        assert method.describe()["ridge strength"] == pytest.approx(float(ranpac[where + "ridge"]), rel=1e-12)
        close(method.gram.G, ranpac[where + "G"], torch.float32, f32=1e-5)
        close(method.gram.Q, stored(ranpac, where + "Q", dtype)[:, : task.seen], dtype)
        assert not ranpac[where + "Q"][:, task.seen :].any()
        A = method.gram.solve(float(ranpac[where + "ridge"]))
        close(A, stored(ranpac, where + "A", dtype), dtype)
        close(project(test, method.R).double() @ A, stored(ranpac, where + "test_logits", dtype), dtype)
        # What is kept and used is float32.
        close(method.ridge.A, ranpac[where + "A"], torch.float32)
        close(method.scores(lambda _: test)["ridge"], ranpac[where + "test_logits"], torch.float32)


@DTYPES
def test_without_projection(ranpac: Arrays, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge_module, "holdout", stored_order)
    config = get_method("ranpac").config_type.make("released", features=0, epochs=0)
    method: Any = get_method("ranpac")(config, SHAPE, SHAPE.width, Generators())
    test = torch.from_numpy(ranpac["features_test"]).to(dtype)
    for number, task in enumerate(SESSIONS, 1):
        phi = torch.from_numpy(ranpac[f"features_session{number}"]).to(dtype)
        arrive(method, task, lambda _=None, phi=phi: phi, ranpac[f"labels_session{number}"])
        where = f"no_projection.session{number}."
        assert float(method.ridge.strength) == pytest.approx(float(stored(ranpac, where + "ridge", dtype)), rel=1e-12)
        A = method.gram.solve(float(ranpac[where + "ridge"]))
        close(A, stored(ranpac, where + "A", dtype), dtype)
        close(test.double() @ A, stored(ranpac, where + "test_logits", dtype), dtype)
        close(method.scores(lambda _: test)["ridge"], ranpac[where + "test_logits"], torch.float32)


@DTYPES
def test_nearest_class_mean(ranpac: Arrays, dtype: torch.dtype) -> None:
    head = PrototypeHead()
    test = torch.from_numpy(ranpac["features_test"])
    for number in (1, 2):
        head.update(
            torch.from_numpy(ranpac[f"features_session{number}"]), torch.from_numpy(ranpac[f"labels_session{number}"])
        )
        where = f"ncm.session{number}."
        if dtype == torch.float64:
            exact = head.sums / head.counts[:, None]
            np.testing.assert_allclose(exact, ranpac[where + "prototypes_f64"], rtol=1e-10)
            cosines = torch.cosine_similarity(test.double()[:, None], exact[None], dim=2)
            np.testing.assert_allclose(cosines, ranpac[where + "test_cosines_f64"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(head.means, stored(ranpac, where + "prototypes", dtype), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(head(test), stored(ranpac, where + "test_cosines", dtype), rtol=1e-5, atol=1e-6)


# -- SAFE --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """What each learner makes of one set of images."""

    fast: Tensor
    slow: Tensor

    @classmethod
    def read(cls, safe: Arrays, name: str, dtype: torch.dtype, *, first: bool) -> Features:
        slow = torch.from_numpy(safe[f"slow_features_{name}"]).to(dtype)
        return cls(slow if first else torch.from_numpy(safe[f"fast_features_{name}"]).to(dtype), slow)

    def passes(self, method: Any) -> Callable[..., Tensor]:
        return lambda tuning: self.slow if tuning is method.slow else self.fast


@DTYPES
@pytest.mark.parametrize("mode", ["shared", "separate"])
def test_safe_heads(safe: Arrays, mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method itself under its released options, fed with the recorded features of both learners."""
    solved: dict[RidgeHead, Tensor] = {}

    def solve(self: RidgeHead, gram: Gram, strength: float, original: Any = RidgeHead.solve) -> None:
        solved[self] = gram.Q.clone()
        original(self, gram, strength)

    monkeypatch.setattr(ridge_module, "holdout", stored_order)
    monkeypatch.setattr(RidgeHead, "solve", solve)
    method = make("safe", "released", statistics=mode)
    method.R.copy_(torch.from_numpy(safe["R"]))
    for number, task in enumerate(SESSIONS, 1):
        where, labels = f"{mode}.session{number}.", safe[f"labels_session{number}"]
        phi = Features.read(safe, f"session{number}", dtype, first=number == 1)
        arrive(method, task, phi.passes(method), labels)
        if number == 2:
            method.head_fast.sigma.data.fill_(11.3)  # what training made of it, on record
        test = Features.read(safe, "test", dtype, first=number == 1)
        with torch.no_grad():
            scores = method.scores(test.passes(method))
        for which in ("fast", "slow"):
            head = getattr(method, f"ridge_{which}")
            assert float(head.strength) == safe[where + f"ridge_{which}"] == safe[where + f"ridge_{which}_f64"]
            close(head.A, stored(safe, where + f"A_{which}", dtype), torch.float32)
            close(scores[which], stored(safe, where + f"test_logits_{which}", dtype), torch.float32)
            if head in solved:  # with separate statistics the first session solves one head for both
                name = f"Q_after_{which}" if mode == "shared" else f"Q_{which}"
                close(solved[head], stored(safe, where + name, dtype)[:, : task.seen], dtype)
    if mode == "shared":
        close(method.gram_fast.G, safe["shared.session2.G_after_slow"], torch.float32, f32=1e-5)


@DTYPES
@pytest.mark.parametrize("mode", ["shared", "separate"])
@pytest.mark.parametrize("number", [1, 2])
def test_safe_selection_losses(safe: Arrays, mode: str, number: int, dtype: torch.dtype) -> None:
    phi = Features.read(safe, f"session{number}", dtype, first=number == 1)
    labels, R = safe[f"labels_session{number}"], torch.from_numpy(safe["R"])
    fit, held = split(labels, int(safe["fit_rows"][number - 1]))
    for which in ("fast", "slow"):
        own = getattr(phi, which)
        chosen = select_ridge(own, torch.from_numpy(labels), safe["ridge_grid"], fit, held, lambda x: project(x, R))
        losses = np.array(chosen.losses) * len(np.unique(labels)) / 7
        wanted = stored(safe, f"{mode}.session{number}.ridge_losses_{which}", dtype)
        np.testing.assert_allclose(losses, wanted, rtol=1e-6 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("mode", ["shared", "separate"])
def test_safe_heads_in_float64(safe: Arrays, mode: str) -> None:
    """Solutions and logits to 1e-9, from the accumulators in the order the method feeds them."""
    R = torch.from_numpy(safe["R"])
    fast = Gram()
    grams = {"fast": fast, "slow": fast if mode == "shared" else Gram()}
    for number in (1, 2):
        phi = Features.read(safe, f"session{number}", torch.float64, first=number == 1)
        test = Features.read(safe, "test", torch.float64, first=number == 1)
        where = f"{mode}.session{number}."
        for which, gram in grams.items():
            gram.update(project(getattr(phi, which), R), torch.from_numpy(safe[f"labels_session{number}"]))
            A = gram.solve(float(safe[where + f"ridge_{which}_f64"]))
            close(A, safe[where + f"A_{which}_f64"], torch.float64)
            logits = float(safe[where + f"sigma_{which}_f64"]) * project(getattr(test, which), R) @ A
            close(logits, safe[where + f"test_logits_{which}_f64"], torch.float64)


def test_the_scales_start_anew_after_the_first_session(safe: Arrays) -> None:
    """Ten for both learners, whatever training made of it; only later sessions train the fast one's further."""
    method = make("safe", "released")
    phases = {phase.name: phase for phase in method.phases(SESSIONS[0])}
    with torch.no_grad():
        phases["draw head"].run()
        method.head_slow.sigma.fill_(14.0)
        phases["freeze slow learner"].run()
    for mode in ("shared", "separate"):
        assert method.head_fast.sigma.item() == safe[f"{mode}.session1.sigma_fast"]
        assert method.head_slow.sigma.item() == safe[f"{mode}.session1.sigma_slow"]


def test_the_released_grids_are_the_recorded_ones(safe: Arrays, ranpac: Arrays) -> None:
    assert make("safe", "released").config.ridge.grid == tuple(safe["ridge_grid"])
    np.testing.assert_allclose(make("ranpac", "released").config.ridge.grid, ranpac["ridge_grid"], rtol=1e-12)
