"""Alignment of a head on drawn features."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.errors import TrainingError
from evertune.heads import LinearHead, MLPHead, align
from evertune.statistics import ClassGaussians

HEADS = pytest.mark.parametrize("kind", [LinearHead, MLPHead])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(kind: type[LinearHead] | type[MLPHead], classes: int, width: int) -> LinearHead | MLPHead:
    head = kind(width)
    head.grow(classes, generator())
    return head


def fixed(classes: int, width: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Draws from a generator of their own."""
    own = generator(5)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(classes, (n,), generator=own)
        return torch.randn(n, width, generator=own) + y[:, None], y

    return draw


@pytest.mark.parametrize(("decay", "tau"), [(0.0, 1.0), (0.1, 0.5)])
def test_alignment_is_momentum_descent_written_out(decay: float, tau: float) -> None:
    epochs, steps, batch, rate, momentum = 3, 4, 5, 0.2, 0.7
    head, draw = make(LinearHead, 3, 4).double(), fixed(3, 4)
    w = np.concatenate([head.weight.detach().numpy(), head.bias.detach().numpy()[:, None]], 1)
    velocity, losses = np.zeros_like(w), []
    for epoch in range(epochs):
        x, y = (v.numpy() for v in draw(steps * batch))
        losses.append(0.0)
        for i in range(steps):
            rows, labels = x[i * batch : (i + 1) * batch], y[i * batch : (i + 1) * batch]
            rows = np.concatenate([rows.astype(float), np.ones((batch, 1))], 1)
            p = softmax(rows @ w.T / tau, axis=1)
            losses[-1] -= np.log(p[np.arange(batch), labels]).mean() / steps
            p[np.arange(batch), labels] -= 1
            velocity = momentum * velocity + p.T @ rows / batch / tau + decay * w
            w = w - rate * (1 + math.cos(math.pi * epoch / epochs)) / 2 * velocity
    again = fixed(3, 4)

    def doubled(n: int) -> tuple[Tensor, Tensor]:
        x, y = again(n)
        return x.double(), y

    options = {"weight_decay": decay, "loss": lambda z, y: F.cross_entropy(z / tau, y)} if decay else {}
    got = align(head, doubled, epochs=epochs, steps=steps, batch=batch, rate=rate, momentum=momentum, **options)
    np.testing.assert_allclose(got, losses, rtol=1e-6)
    np.testing.assert_allclose(head.weight.detach().numpy(), w[:, :-1], rtol=1e-10)
    np.testing.assert_allclose(head.bias.detach().numpy(), w[:, -1], rtol=1e-10)


@HEADS
@pytest.mark.parametrize("mode", ["centroids", "covariance", "variance", "lowrank"])
def test_a_biased_head_is_put_right(kind: type[LinearHead] | type[MLPHead], mode: str) -> None:
    """Tasks learned one after another never compared their classes: the newest one wins everywhere."""
    classes, width = 20, 24
    centres = 3 * torch.randn(classes, width, generator=generator(1))
    labels = torch.arange(classes).repeat_interleave(40)
    features = centres[labels] + torch.randn(len(labels), width, generator=generator(2))
    head = make(kind, classes, width)
    with torch.no_grad():
        (head if isinstance(head, LinearHead) else head.out).bias[-5:] += 30
    test = centres[labels] + torch.randn(len(labels), width, generator=generator(3))

    def accuracy() -> float:
        with torch.no_grad():
            return float((head(test).argmax(1) == labels).float().mean())

    assert accuracy() < 0.3
    statistics, own = ClassGaussians(mode), generator(4)
    statistics.fit(features, labels, 0, own)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x, entry = statistics.sample(n, own)
        return x, statistics.entry_class[entry]

    losses = align(head, draw, epochs=30, steps=15, batch=120, rate=0.005)
    assert len(losses) == 30
    assert losses[-1] < 0.2 * losses[0]
    assert accuracy() >= 0.99


@HEADS
@pytest.mark.parametrize("frozen", [False, True])
def test_only_the_values_of_the_head_change(kind: type[LinearHead] | type[MLPHead], frozen: bool) -> None:
    head = make(kind, 3, 4)
    head.requires_grad_(not frozen)
    identities = [id(p) for p in head.parameters()]
    before = [p.detach().clone() for p in head.parameters()]
    with torch.no_grad():
        align(head, fixed(3, 4), epochs=2, steps=3, batch=8, rate=0.1)
        assert not torch.is_grad_enabled()
    assert [id(p) for p in head.parameters()] == identities
    for p, old in zip(head.parameters(), before, strict=True):
        assert p.requires_grad is not frozen
        assert p.grad is None
        assert not torch.equal(p, old)


def test_each_epoch_draws_once_for_all_its_steps() -> None:
    asked: list[int] = []
    draw = fixed(3, 4)

    def counted(n: int) -> tuple[Tensor, Tensor]:
        asked.append(n)
        return draw(n)

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make(LinearHead, 3, 4)
            self.seen: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(len(x))
            return self.inner(x)

    head = Counting()
    align(head, counted, epochs=3, steps=4, batch=6, rate=0.1)
    assert asked == [24] * 3
    assert head.seen == [6] * 12


def test_without_an_earlier_class_there_is_nothing_to_align() -> None:
    head = make(LinearHead, 3, 4)
    before = head.weight.detach().clone()

    def draw(n: int) -> tuple[Tensor, Tensor]:
        raise AssertionError

    assert align(head, draw, epochs=30, steps=0, batch=8, rate=0.1) == []
    assert torch.equal(head.weight, before)


def test_a_diverging_head_is_left_as_it_was() -> None:
    head, draw = make(LinearHead, 3, 4), fixed(3, 4)
    before = head.weight.detach().clone()

    def exploding(n: int) -> tuple[Tensor, Tensor]:
        x, y = draw(n)
        return x * 1e30, y

    with pytest.raises(TrainingError, match=r"diverged in epoch 1: its loss is (nan|inf)\. Lower its rate \(0\.5\)"):
        align(head, exploding, epochs=3, steps=4, batch=6, rate=0.5)
    assert torch.equal(head.weight, before)
    assert head.weight.grad is None


def test_what_is_fixed_keeps_its_values() -> None:
    head, before = make(LinearHead, 3, 4), make(LinearHead, 3, 4)
    align(head, fixed(3, 4), epochs=2, steps=3, batch=8, rate=0.1, fixed=("bias",))
    assert head.bias.equal(before.bias) and not head.weight.equal(before.weight)
