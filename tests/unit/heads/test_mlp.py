"""The residual head."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import erf

from evertune.heads import MLPHead


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grown(classes: int = 3, width: int = 6) -> MLPHead:
    head = MLPHead(width)
    head.grow(classes, generator())
    return head


def test_mlp_scores_written_out() -> None:
    head = grown().double()
    with torch.no_grad():
        for i, p in enumerate(head.parameters()):
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=generator(i)))
    x = torch.randn(9, 6, dtype=torch.float64, generator=generator())
    weights = {name: p.detach().numpy() for name, p in head.named_parameters()}

    def linear(name: str, v: np.ndarray) -> np.ndarray:
        return v @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, v: np.ndarray) -> np.ndarray:
        away = v - v.mean(1, keepdims=True)
        return away / np.sqrt(v.var(1, keepdims=True) + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    hidden = linear("widen", x.numpy())
    assert hidden.shape == (9, 12)
    hidden = norm("hidden_norm", hidden * (1 + erf(hidden / math.sqrt(2))) / 2)
    wanted = linear("out", norm("norm", x.numpy() + linear("narrow", hidden)))
    np.testing.assert_allclose(head(x).detach().numpy(), wanted, rtol=1e-10, atol=1e-12)


def test_mlp_growth_keeps_all_that_was_there() -> None:
    head = grown(3)
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    head.grow(2, generator(1))
    assert head.classes == 5
    assert head(torch.randn(4, 6)).shape == (4, 5)
    for name, p in head.named_parameters():
        assert torch.equal(p[: len(before[name])], before[name])


def test_mlp_follows_its_generator_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, other = grown(), grown()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.narrow.weight.abs().max() <= 1 / math.sqrt(12)
    assert one.narrow.weight.detach().std() > 0.4 / math.sqrt(12)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_mlp_state_loads_into_a_fresh_head() -> None:
    head, fresh = grown(4), MLPHead(6)
    assert fresh.classes == 0
    fresh.load_state_dict(head.state_dict())
    x = torch.randn(3, 6, generator=generator())
    assert torch.equal(fresh(x), head(x))
    fresh.grow(1, generator())
    assert torch.equal(fresh(x)[:, :4], head(x))
