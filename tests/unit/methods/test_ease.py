"""EASE over a real, tiny transformer, against its equations written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import TimmViT
from evertune.errors import ConfigError
from evertune.learner import Learner
from evertune.methods.ease import EASEConfig
from evertune.statistics import SectionMeans
from evertune.streams import Source, Stream

QUICK: dict[str, Any] = {"preset": "paper-plain", "batch_size": 8, "epochs": 2, "rate": 0.05, "tuning.bottleneck": 4}


def learner(backbone: TimmViT, **options: Any) -> Learner:
    return Learner("ease", backbone, progress=False, device="cpu", **QUICK | options)


@pytest.fixture(scope="module")
def taught(backbone: TimmViT, stream: Stream) -> Learner:
    me = learner(backbone, synthesis="task")
    for task in stream:
        me.learn(task)
    return me


def features(me: Learner, source: Source) -> tuple[list[Tensor], Tensor, Tensor]:
    """Under each adapter, under the plain model, and indices in the order of ``me.classes``."""
    adapters = tuple(me.method.bank)
    made = me.engine.compute(source, adapters, lambda p: {str(b): p(each) for b, each in enumerate(adapters)})
    labels = torch.tensor([me.classes.index(source.classes[i]) for i in source.labels])
    return list(made.values()), me.engine.features(source), labels


def test_scores_are_the_equation(taught: Learner, train: Source, test: Source) -> None:
    """Six classes in three tasks: class c is of task c // 2."""
    x, plain, y = features(taught, train)
    mean = [[part[y == c].mean(0) for part in x] for c in range(6)]
    for c in range(4):
        for b in range(c // 2 + 1, 3):
            own = (2 * b, 2 * b + 1)
            alike = torch.stack([F.cosine_similarity(mean[c][c // 2], mean[j][c // 2], dim=0) for j in own])
            mean[c][b] = sum(a * mean[j][b] for a, j in zip(alike.softmax(0), own, strict=True))
    tuned, untuned, _ = features(taught, test)
    wanted = torch.stack(
        [
            sum((1.0 if b == c // 2 else 0.1 / 2) * F.cosine_similarity(tuned[b], mean[c][b][None]) for b in range(3))
            + 0.2 * F.cosine_similarity(untuned, plain[y == c].mean(0)[None])
            for c in range(6)
        ],
        dim=1,
    )
    torch.testing.assert_close(taught.scores(test), wanted, rtol=1e-4, atol=1e-5)


def test_of_a_told_task_only_its_own_subspace_is_asked(taught: Learner, test: Source) -> None:
    tuned, _, labels = features(taught, test)
    tasks = labels // 2
    own = torch.stack(tuned, 1)[torch.arange(len(test)), tasks]
    made = taught.engine.compute(
        test, tuple(taught.method.bank), lambda p: {"told": taught.method.told(p, tasks[p.rows])}
    )
    for row, (x, b) in enumerate(zip(own, tasks.tolist(), strict=True)):
        wanted = F.cosine_similarity(x[None], taught.method.sections.prototypes()[:, b])
        torch.testing.assert_close(made["told"][row], wanted, rtol=1e-4, atol=1e-5)


def test_every_task_has_a_frozen_adapter_of_its_own(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone)
    prints: list[str] = []
    for number, task in enumerate(stream):
        reports = me.learn(task)
        assert [report.name for report in reports] == ["open", "adapter", "freeze", "prototypes"]
        assert [adapter.fingerprint() for adapter in me.method.bank][:number] == prints
        prints = [adapter.fingerprint() for adapter in me.method.bank]
    assert len(set(prints)) == 3
    assert all(adapter.frozen for adapter in me.method.bank) and me.method.head.classes == 0
    assert me.method.branches == (*me.method.bank, None)


def test_without_beta_the_plain_model_is_not_asked(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone, beta=0.0)
    me.learn(stream[0])
    assert None not in me.method.branches and me.method.plain.sums.numel() == 0


def test_known_classes_in_new_domains_count_in_all_sections(backbone: TimmViT, domains: Stream) -> None:
    me = learner(backbone, beta=0.0)
    for task in domains:
        me.learn(task)
    sections = me.method.sections
    assert sections.shown.all()
    assert sections.counts[:, 0].tolist() == [8] * 6
    assert (sections.counts.diff(dim=1) < 0).all()  # a later adapter saw fewer of the examples
    torch.testing.assert_close(sections.weights(0.1), torch.full((6, 3), 1 / 3))
    assert sections.prototypes().equal(sections.means)


def sections_of(classes: int, tasks: int, width: int = 5) -> SectionMeans:
    """``classes`` per task."""
    generator = torch.Generator().manual_seed(0)
    sections = SectionMeans()
    for t in range(tasks):
        labels = torch.arange(t * classes, (t + 1) * classes).repeat(3)
        sections.update(torch.randn(len(labels), t + 1, width, generator=generator), labels)
    return sections


def test_a_class_that_comes_again_is_mapped_from_its_last_task() -> None:
    sections = sections_of(2, 2)
    again = torch.ones(1, 3, 5)
    sections.update(again, torch.tensor([0]))  # class 0 once more, in task 2
    sections.update(torch.randn(4, 4, 5), torch.tensor([4, 4, 5, 5]))
    assert sections.shown[0].tolist() == [True, False, True, False]
    assert sections.counts[0].tolist() == [4, 1, 1, 0]
    assert sections.weights(0.1)[0].tolist() == pytest.approx([0.5, 0.05, 0.5, 0.05])
    means = sections.means
    alike = F.cosine_similarity(means[0, 2], means[4:6, 2]).softmax(0)
    torch.testing.assert_close(sections.prototypes()[0, 3], alike @ means[4:6, 3])
    torch.testing.assert_close(sections.prototypes()[1, 2], means[0, 2])  # the only class that task 2 showed


def test_as_released_classes_of_later_tasks_take_part() -> None:
    sections = sections_of(2, 3)
    means, made = sections.means, sections.prototypes(later=True)
    for c, section in ((0, 1), (1, 1), (0, 2), (2, 2)):
        own, others = c // 2, range(2 * section, 6)  # of the section's task on, all have true means in it
        alike = F.cosine_similarity(means[c, own], means[others, own]).softmax(0)
        torch.testing.assert_close(made[c, section], alike @ means[others, section])
    assert made[:, 2].equal(sections.prototypes()[:, 2]) and not made[:, 1].equal(sections.prototypes()[:, 1])


def test_forgetting_removes_sections_that_are_nobodys() -> None:
    sections, left = sections_of(2, 3), sections_of(2, 3)
    assert sections.forget([1]) == []
    assert sections.forget([1, 2]) == [1]  # what were classes 2 and 3
    assert sections.sums.equal(left.sums[[0, 4, 5]][:, [0, 2]])
    assert sections.shown.tolist() == [[True, False], [False, True], [False, True]]
    other = SectionMeans()
    other.load_state_dict(sections.state_dict())
    assert other.prototypes().equal(sections.prototypes())


@pytest.mark.parametrize("options", [{"epochs": 0}, {"alpha": -1.0}, {"beta": -0.1}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        EASEConfig.make(**options)
