"""Cosine, linear, prototype and ridge heads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity
from torch.nn import functional as F

import evertune.heads.ridge as ridge_module
from evertune.heads import (
    CosineHead,
    LinearHead,
    PrototypeHead,
    RidgeHead,
    RidgeOptions,
    normalised,
    project,
    random_projection,
    section_scores,
)
from evertune.statistics import Gram


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(rows: int = 9, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=generator(seed))


# -- cosine ------------------------------------------------------------------------------------------------------------


def test_cosine_scores_are_scaled_cosines() -> None:
    head = CosineHead(6, sigma=10.0)
    head.draw(4, generator())
    x = features()
    wanted = 10 * cosine_similarity(x.numpy(), head.weight.detach().numpy())
    np.testing.assert_allclose(head(x).detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head(7 * x), head(x))


def test_cosine_rows_are_drawn_within_their_bound() -> None:
    head = CosineHead(400, sigma=1.0)
    head.draw(50, generator())
    bound = 1 / math.sqrt(400)
    assert head.weight.abs().max() <= bound
    assert abs(float(head.weight.detach().std()) - bound / math.sqrt(3)) < 0.02 * bound
    assert head.classes == 50


def test_cosine_growth_keeps_old_rows_and_whether_they_learn() -> None:
    head = CosineHead(6, sigma=1.0)
    head.draw(2, generator())
    old = head.weight.detach().clone()
    head.requires_grad_(False)
    head.grow(torch.ones(3, 6))
    assert torch.equal(head.weight[:2], old)
    assert head.classes == 5
    assert not head.weight.requires_grad


def test_imprinted_rows_point_along_the_means_and_are_as_long_as_the_others() -> None:
    head = CosineHead(6, sigma=1.0)
    head.imprint(3 * torch.eye(6)[:2])
    torch.testing.assert_close(head.weight.detach(), torch.eye(6)[:2])
    head = CosineHead(6, sigma=1.0)
    head.grow(torch.diag(torch.tensor([2.0, 4.0, 0, 0, 0, 0]))[:2])
    head.imprint(0.1 * torch.eye(6)[3:5])
    torch.testing.assert_close(head.weight.detach()[2:], 3 * torch.eye(6)[3:5])


def train_new_rows(head: CosineHead, steps: int) -> list[torch.Tensor]:
    """Rows of classes 2 and 3 after each SGD step on batches of those two classes."""
    x, y = features(200, 6, seed=5), torch.arange(200) % 2 + 2
    x = x + 2 * F.one_hot(y, 6)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    history = []
    for step in range(steps):
        rows = torch.arange(step * 8, step * 8 + 8) % 200
        optimizer.zero_grad()
        F.cross_entropy(head(x[rows]), y[rows]).backward()
        optimizer.step()
        history.append(head.weight.detach()[2:].clone())
    return history


def turned(history: list[torch.Tensor]) -> torch.Tensor:
    return 1 - F.cosine_similarity(history[0], history[-1], dim=1)


def test_imprinted_rows_go_on_turning() -> None:
    """The guard against trap T1: after one step the norm is O(1), and the direction still moves."""
    head = CosineHead(6, sigma=10.0)
    head.draw(2, generator())
    head.imprint(features(2, 6, seed=8))
    history = train_new_rows(head, 100)
    assert history[0].norm(dim=1).max() < 10
    assert turned(history).min() > 1e-3


def test_zero_rows_freeze_after_one_step() -> None:
    """Trap T1 itself, which the released mode reproduces."""
    head = CosineHead(6, sigma=10.0)
    head.draw(2, generator())
    head.grow(torch.zeros(2, 6))
    history = train_new_rows(head, 100)
    assert history[0].norm(dim=1).min() > 1e9
    assert turned(history).abs().max() < 1e-6


# -- linear ------------------------------------------------------------------------------------------------------------


def test_linear_scores_and_growth() -> None:
    head = LinearHead(6)
    head.grow(3, generator())
    x = features()
    before = head(x).detach()
    np.testing.assert_allclose(before.numpy(), x.numpy() @ head.weight.detach().numpy().T, rtol=1e-5, atol=1e-6)
    head.bias.data += 1
    head.grow(2, generator(1))
    assert head.classes == 5
    torch.testing.assert_close(head(x)[:, :3], before + 1)
    assert head.bias.tolist() == [1, 1, 1, 0, 0]
    assert head.weight.abs().max() <= 1 / math.sqrt(6)
    assert head.weight.requires_grad
    fresh = LinearHead(6)
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh(x), head(x))


# -- prototypes --------------------------------------------------------------------------------------------------------


def test_prototype_scores_are_cosines_to_class_means() -> None:
    head = PrototypeHead()
    x, y = features(30), torch.arange(30) % 3
    head.update(x[:11], y[:11])
    head.update(x[11:], y[11:])
    means = np.stack([x[y == c].double().mean(0).numpy() for c in range(3)])
    np.testing.assert_allclose(head(x), cosine_similarity(x.numpy(), means), rtol=1e-5, atol=1e-6)
    assert not list(head.parameters())


@pytest.mark.parametrize("factor", [1e-3, 37.0])
def test_the_scale_of_features_does_not_matter_to_prototypes(factor: float) -> None:
    x, y = features(30), torch.arange(30) % 3
    plain, scaled = PrototypeHead(), PrototypeHead()
    plain.update(x, y)
    scaled.update(factor * x, y)
    torch.testing.assert_close(scaled(factor * x), plain(x))


# -- scores by section (NTK-CL spec §8, §12.6) -------------------------------------------------------------------------

OMEGA = (1.0, 0.3, 0.1)


def sections() -> tuple[torch.Tensor, torch.Tensor]:
    """Features [5, 12] and prototypes [4, 12] of three sections, in float64; the last class has no data."""
    x, prototypes = features(5, 12).double(), features(4, 12, seed=1).double()
    prototypes[3] = 0
    return x, prototypes


def test_every_section_is_scored_for_itself() -> None:
    x, prototypes = sections()
    wanted = np.zeros((5, 4))
    for b, z in enumerate(x.numpy()):
        for k, p in enumerate(prototypes.numpy()[:3]):
            for i, w in enumerate(OMEGA):
                u, v = z[4 * i : 4 * i + 4], p[4 * i : 4 * i + 4]
                wanted[b, k] += w * np.dot(u, v) / math.sqrt(np.dot(u, u) * np.dot(v, v))
    np.testing.assert_allclose(section_scores(x, prototypes, OMEGA), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_section_counts_in_its_own_term_alone_and_not_by_its_length(changed: int) -> None:
    x, prototypes = sections()
    before = section_scores(x, prototypes, OMEGA)
    columns = slice(4 * changed, 4 * changed + 4)
    for longer in (x, prototypes):
        longer[:, columns] *= 37
    torch.testing.assert_close(section_scores(x, prototypes, OMEGA), before, rtol=0, atol=1e-14)
    x[:, columns] = features(5, 4, seed=7).double()
    term = [w if i == changed else 0.0 for i, w in enumerate(OMEGA)]
    difference = section_scores(x, prototypes, OMEGA) - before
    own = section_scores(x, prototypes, term) - section_scores(sections()[0], prototypes, term)
    torch.testing.assert_close(difference, own, rtol=0, atol=1e-14)
    assert difference[:, :3].abs().min() > 0


def test_the_prototype_itself_has_the_highest_score() -> None:
    _, prototypes = sections()
    scores = section_scores(prototypes, prototypes, OMEGA)
    torch.testing.assert_close(scores.diagonal()[:3], torch.full((3,), 1.4, dtype=torch.float64))
    assert scores.max() <= 1.4 + 1e-12
    assert not scores[3].any() and not scores[:, 3].any()


# -- ridge -------------------------------------------------------------------------------------------------------------


def test_projection_is_a_relu_of_gaussian_features() -> None:
    R = random_projection(200, 300, generator())
    assert R.shape == (200, 300)
    assert abs(float(R.mean())) < 0.02 and abs(float(R.std()) - 1) < 0.02
    assert torch.equal(R, random_projection(200, 300, generator()))
    x = features(4, 200)
    np.testing.assert_allclose(project(x, R), np.maximum(x.numpy() @ R.numpy(), 0), rtol=1e-4, atol=1e-4)


def test_an_empty_projection_gives_the_features_themselves() -> None:
    x = features(4, 6)
    assert torch.equal(project(x, random_projection(6, 0, generator())), x)


@pytest.mark.parametrize(("given", "wanted"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_projection_is_never_narrower_than_float32(given: torch.dtype, wanted: torch.dtype) -> None:
    assert project(features(2, 6).to(given), random_projection(6, 8, generator())).dtype == wanted
    assert project(features(2, 6).to(given), torch.zeros(6, 0)).dtype == wanted


def test_relative_candidates_follow_the_features() -> None:
    """Features three times as long, λ nine times as large, the same classifier."""
    x, y, R = features(60), torch.arange(60) % 4, random_projection(6, 50, generator())
    options = RidgeOptions(tuple(10.0**p for p in range(-6, 2)), relative=True)
    one, three = (RidgeHead().choose(scale * x, y, R, options, generator()) for scale in (1.0, 3.0))
    assert three == pytest.approx(9 * one, rel=1e-5)
    energy = project(x, R).square().sum(1).mean().item()
    assert any(one == pytest.approx(energy * value, rel=1e-5) for value in options.grid)


@pytest.mark.parametrize("strength", [1e-8, 1.0, 1e3, 1e8])
@pytest.mark.parametrize(("rows", "width"), [(40, 90), (90, 20)])
def test_ridge_scores_are_those_of_scikit_learn(rows: int, width: int, strength: float) -> None:
    x, y = features(rows, width), torch.arange(rows) % 4
    gram, head = Gram(), RidgeHead()
    gram.update(x[:7], y[:7])
    gram.update(x[7:], y[7:])
    head.solve(gram, strength)
    oracle = Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(x.double().numpy(), np.eye(4)[y])
    probe = features(20, width, seed=9)
    wanted = oracle.predict(probe.double().numpy())
    np.testing.assert_allclose(head(probe), wanted, atol=1e-5 * np.abs(wanted).max())
    assert head.classes == 4
    assert float(head.strength) == strength


def test_ridge_state_loads_into_a_fresh_head() -> None:
    gram, head, fresh = Gram(), RidgeHead(), RidgeHead()
    gram.update(features(), torch.arange(9) % 3)
    head.solve(gram, 1e2)
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh(features()), head(features()))
    assert float(fresh.strength) == 1e2


def test_a_fixed_strength_is_taken_as_it_is() -> None:
    options = RidgeOptions((1.0,), strength=123.0)
    draw = generator()
    state = draw.get_state()
    assert RidgeHead().choose(features(), torch.arange(9) % 3, torch.zeros(6, 0), options, draw) == 123.0
    assert torch.equal(draw.get_state(), state)


@pytest.mark.parametrize("stratified", [True, False])
def test_a_strength_is_chosen_on_projected_held_out_rows(monkeypatch: pytest.MonkeyPatch, stratified: bool) -> None:
    asked = {}

    def spy(x, y, grid, fit, held, lift):
        asked.update(fit=fit, held=held, lifted=lift(x))
        return select(x, y, grid, fit, held, lift)

    select = ridge_module.select_ridge
    monkeypatch.setattr(ridge_module, "select_ridge", spy)
    x, y, R = features(200), torch.arange(200) % 4, random_projection(6, 50, generator())
    options = RidgeOptions((1.0, 10.0), stratified=stratified)
    assert RidgeHead().choose(x, y, R, options, generator()) in (1.0, 10.0)
    assert len(asked["held"]) == 40
    assert torch.equal(asked["lifted"], project(x, R))


@pytest.mark.parametrize(
    ("rows", "stratified", "held"), [(40, True, 0), (140, True, 0), (200, True, 40), (40, False, 8)]
)
def test_a_small_stratified_split_gives_way_to_leave_one_out(
    monkeypatch: pytest.MonkeyPatch, rows: int, stratified: bool, held: int
) -> None:
    """Three held-out rows once chose a strength four decades below leave-one-out's, and lost half the accuracy."""
    seen = []

    def spy(x, y, grid, fit, val, lift):
        seen.append((len(fit), len(val)))
        return select(x, y, grid, fit, val, lift)

    select = ridge_module.select_ridge
    monkeypatch.setattr(ridge_module, "select_ridge", spy)
    options = RidgeOptions((1.0, 10.0), stratified=stratified)
    RidgeHead().choose(features(rows), torch.arange(rows) % 4, torch.zeros(6, 0), options, generator())
    assert seen == [(rows - held, held)]


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_strength_is_found_for_a_handful_of_images(rows: int, stratified: bool) -> None:
    options = RidgeOptions(tuple(10.0**p for p in range(-8, 9)), stratified=stratified)
    x, y = features(rows), torch.arange(rows)
    strength = RidgeHead().choose(x, y, random_projection(6, 50, generator()), options, generator())
    assert strength in options.grid


# -- columns of tasks --------------------------------------------------------------------------------------------------


def test_normalised_logits_are_divided_by_the_mean_norm_of_the_tasks() -> None:
    logits, owner = features(4, 7).double(), torch.tensor([0, 0, 3, 0, 1, 1, 1])
    norms = [np.linalg.norm(logits.numpy()[:, owner == task], axis=1) for task in (0, 1, 3)]
    wanted = logits.numpy() / (0.1 * np.mean(norms, axis=0)[:, None])
    np.testing.assert_allclose(normalised(logits, owner, 0.1), wanted, rtol=1e-12)


def test_logits_of_zero_have_a_gradient() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    normalised(logits, torch.tensor([0, 0, 1]), 0.1).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_rows_of_a_linear_head_are_taken_out_and_put_back() -> None:
    head = LinearHead(6)
    head.grow(4, generator())
    before = head(features())
    part = head.select((3, 1))
    torch.testing.assert_close(part(features()), before[:, [3, 1]])
    with torch.no_grad():
        part.weight.add_(1)
        part.bias.add_(2)
    torch.testing.assert_close(head(features()), before)
    head.replace((3, 1), part)
    assert head(features())[:, [0, 2]].equal(before[:, [0, 2]])
    torch.testing.assert_close(head(features())[:, [3, 1]], before[:, [3, 1]] + features().sum(1, keepdim=True) + 2)
    assert part.select(()).classes == 0
