"""TUNA over a real, tiny transformer, against its equations written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from scipy.stats import entropy as scipy_entropy
from torch import Tensor, nn

from evertune.backbones import TimmViT
from evertune.errors import ConfigError
from evertune.learner import Learner
from evertune.methods.losses import row_means, separation
from evertune.methods.tuna import TUNAConfig, surest
from evertune.streams import Source, Stream

QUICK: dict[str, Any] = {
    "preset": "paper", "batch_size": 8, "epochs": 2, "rate": 0.5, "tuning.bottleneck": 4, "align_epochs": 4
}  # fmt: skip


def learner(backbone: TimmViT, **options: Any) -> Learner:
    return Learner("tuna", backbone, progress=False, device="cpu", **QUICK | options)


@pytest.fixture(scope="module")
def taught(backbone: TimmViT, stream: Stream) -> Learner:
    me = learner(backbone)
    for task in stream:
        me.learn(task)
    return me


def logits(me: Learner, source: Source) -> tuple[NDArray[Any], NDArray[Any]]:
    """Under each adapter [B, T, K], and under the universal one [B, K], by numpy from the features."""
    branches = me.method.branches
    made = me.engine.compute(source, branches, lambda p: {str(b): p(each) for b, each in enumerate(branches)})
    w = me.method.head.weight.detach().numpy()
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    z = [20 * (x / np.linalg.norm(x, axis=1, keepdims=True)) @ w.T for x in (v.numpy() for v in made.values())]
    return np.stack(z[:-1], 1), z[-1]


# -- prediction --------------------------------------------------------------------------------------------------------


def test_scores_are_the_equation(taught: Learner, test: Source) -> None:
    own, universal = logits(taught, test)
    chosen = scipy_entropy(softmax(own, axis=2), axis=2).argmin(1)
    assert len(set(chosen.tolist())) > 1
    routed = own[np.arange(len(own)), chosen]
    wanted = np.log(softmax(routed, axis=1) / 2 + softmax(universal, axis=1) / 2)
    parts = taught.engine.scores(taught.method, test)
    assert list(parts) == ["mixture", "routed", "universal"]
    for part, value in zip(parts.values(), (wanted, routed, universal), strict=True):
        np.testing.assert_allclose(part.numpy(), value, rtol=1e-4, atol=1e-4)
    identified = taught.engine.compute(test, taught.method.branches, lambda p: {"task": taught.method.identify(p)})[
        "task"
    ]
    assert identified.tolist() == chosen.tolist()


def test_the_surest_is_chosen_row_by_row() -> None:
    z = torch.tensor([[[9.0, 0, 0], [1, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 9, 0], [0, 0, 0.1]]])
    assert surest(z).tolist() == [0, 1, 1]
    assert [int(surest(z[:, b : b + 1])) for b in range(3)] == [0, 1, 1]  # whoever else is in the batch


def test_a_told_task_is_one_pass(taught: Learner, test: Source) -> None:
    own, _ = logits(taught, test)
    tasks = torch.arange(len(test)) % 3
    made = taught.engine.compute(
        test, tuple(taught.method.bank), lambda p: {"told": taught.method.told(p, tasks[p.rows])}
    )
    np.testing.assert_allclose(made["told"].numpy(), own[np.arange(len(test)), tasks], rtol=1e-4, atol=1e-4)


def test_of_one_task_its_adapter_is_the_universal_one(backbone: TimmViT, stream: Stream, test: Source) -> None:
    me = learner(backbone)
    me.learn(stream[0])
    assert me.method.branches == (me.method.bank[0],)
    parts = me.engine.scores(me.method, test)
    assert torch.equal(parts["routed"], parts["universal"])
    wanted = log_softmax(parts["routed"].numpy(), axis=1)
    np.testing.assert_allclose(parts["mixture"].numpy(), wanted, rtol=1e-5, atol=1e-6)


# -- learning ----------------------------------------------------------------------------------------------------------


def test_each_task_has_a_frozen_adapter_that_begins_as_the_one_before(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone)
    prints: list[str] = []
    for number, task in enumerate(stream):
        began: list[str] = []
        me.learn(task, lambda report, began=began: began.append(me.method.bank[-1 + len(me.method.bank)].fingerprint()))
        assert [entry["name"] for entry in me.phases] == ["open", "adapter", "fuse", "features", "alignment"]
        assert [adapter.fingerprint() for adapter in me.method.bank][:number] == prints
        assert began[0] == (prints[-1] if prints else me.method.bank.template.fingerprint()) != began[1]
        prints = [adapter.fingerprint() for adapter in me.method.bank]
    assert len(set(prints)) == 3 and all(adapter.frozen for adapter in me.method.bank) and me.method.universal.frozen
    each = torch.stack([nn.utils.parameters_to_vector(adapter.parameters()) for adapter in me.method.bank])
    largest = torch.where(each.sum(0) > 0, each.amax(0), each.amin(0))
    assert nn.utils.parameters_to_vector(me.method.universal.parameters()).equal(largest)


def test_the_scale_stays_and_the_alignment_moves_all_rows(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone)
    me.learn(stream[0])
    first = me.method.head.weight.detach().clone()
    trained: list[Tensor] = []
    me.learn(stream[1], lambda report: trained.append(me.method.head.weight.detach().clone()))
    directions = [nn.functional.normalize(w[:2], dim=1) for w in (first, trained[1], trained[4])]
    torch.testing.assert_close(directions[1], directions[0])  # weight decay changes their length alone
    assert (directions[2] - directions[0]).abs().max() > 1e-3
    assert me.method.head.sigma.item() == 20.0
    plain = learner(backbone, align_epochs=0)
    for task in list(stream)[:2]:
        plain.learn(task)
    assert plain.method.head.weight.equal(trained[1])


def test_known_classes_in_new_domains_have_gaussians_of_each(backbone: TimmViT, domains: Stream, test: Source) -> None:
    me = learner(backbone)
    for task in domains:
        me.learn(task)
    assert me.method.gaussians.entry_class.tolist() == [*range(6)] * 3
    assert me.method.gaussians.entry_task.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert len(me.method.bank) == 3 and me.method.head.classes == 6 and me.scores(test).isfinite().all()


# -- orthogonality -----------------------------------------------------------------------------------------------------


def test_separation_is_the_mean_cosine_of_all_pairs_of_rows() -> None:
    rng = np.random.default_rng(0)
    current, earlier = rng.normal(size=(2, 7, 3)), rng.normal(size=(4, 2, 7, 3))
    wanted = 0.0
    for tuning in earlier:
        for mine, theirs in zip(current, tuning, strict=True):
            cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in mine for b in theirs]
            wanted += abs(np.mean(cosines)) / 2
    got = separation(
        row_means(list(torch.tensor(current))), torch.stack([row_means(list(t)) for t in torch.tensor(earlier)])
    )
    assert float(got) == pytest.approx(wanted, rel=1e-10)


def test_rows_of_zeros_have_no_gradient() -> None:
    matrix = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix[1] = 0
    matrix.requires_grad_()
    separation(row_means([matrix]), torch.ones(1, 1, 3, dtype=torch.float64)).backward()
    assert matrix.grad is not None and matrix.grad.isfinite().all()
    assert not matrix.grad[1].any() and matrix.grad[0].any()


def test_orthogonality_counts_from_the_second_task_on(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone, orthogonal=2.0, epochs=1, batch_size=16)
    reports = [me.learn(task)[1].losses for task in list(stream)[:2]]
    assert list(reports[0]) == ["classification"] and list(reports[1]) == ["classification", "orthogonality"]
    up = row_means(me.method.bank[0].writes())
    start = 2 * math.exp(-2) * float(separation(up, up[None]))  # of its only step: the two are still the same
    assert reports[1]["orthogonality"] == pytest.approx(start, rel=1e-5) and start > 0


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"orthogonal": -1.0}, {"align_epochs": -1}, {"align_samples": 0}, {"align_rate": 0.0},
     {"statistics_rank": 0}],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        TUNAConfig.make(**options)


def test_what_has_no_bottleneck_cannot_be_orthogonal(backbone: TimmViT) -> None:
    with pytest.raises(ConfigError, match=r"orthogonal=0.001 .* a ssf has none"):
        Learner("tuna", backbone, preset="paper", tuning="ssf")
