"""LAE over a real, tiny transformer, against its equations written out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from evertune.backbones import TimmViT
from evertune.engine import PhaseReport
from evertune.engine.descent import Descent
from evertune.errors import ConfigError
from evertune.heads import LinearHead
from evertune.learner import Learner
from evertune.methods import LAE, Batch
from evertune.methods.lae import LAEConfig
from evertune.streams import Source, Stream

QUICK: dict[str, Any] = {
    "preset": "paper",
    "batch_size": 8,
    "epochs": 3,
    "freeze_epochs": 1,
    "rate": 0.02,
    "blocks": "0-1",
}


def learner(backbone: TimmViT, **options: Any) -> Learner:
    return Learner("lae", backbone, progress=False, device="cpu", **QUICK | options)


def method_of(me: Learner) -> LAE:
    return cast(LAE, me.method)


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


class Steps:
    """The online tuning and the head after every step of a training phase, by the phase's name."""

    def __init__(self, me: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.online: dict[str, list[list[Tensor]]] = {}
        self.heads: dict[str, list[list[Tensor]]] = {}
        step, method = Descent.step, method_of(me)

        def noted(descent: Descent, batch: Batch, whole: int) -> None:
            step(descent, batch, whole)
            self.online.setdefault(descent.phase.name, []).append(values(method.online))
            self.heads.setdefault(descent.phase.name, []).append(values(method.head))

        monkeypatch.setattr(Descent, "step", noted)


@pytest.mark.parametrize("options", [{"alpha": 0.9}, {"alpha": 0.5, "alpha_over": "task"}])
def test_the_offline_tuning_is_the_moving_average_of_the_online_one(
    backbone: TimmViT, stream: Stream, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Written out as the sum of what each step left, weighted by powers of α."""
    me = learner(backbone, **options)
    me.learn(stream[0])
    method = method_of(me)
    start = values(method.online)
    assert all(map(torch.equal, values(method.offline), start))
    steps = Steps(me, monkeypatch)
    me.learn(stream[1])
    after = [*steps.online["classifier"], *steps.online["online"]]
    assert len(after) == 3 * 2  # epochs × batches of 16 images
    alpha = 0.9 if options["alpha"] == 0.9 else 0.5 ** (1 / 6)
    for i, found in enumerate(method.offline.parameters()):
        wanted = alpha**6 * start[i].double()
        for k, values_after in enumerate(after, 1):
            wanted += (1 - alpha) * alpha ** (6 - k) * values_after[i].double()
        torch.testing.assert_close(found.detach(), wanted.float(), rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(a, b) for a, b in zip(values(method.online), values(method.offline), strict=True))


def test_the_classifier_learns_first_and_alone_but_not_in_the_first_task(
    backbone: TimmViT, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = learner(backbone)
    steps = Steps(me, monkeypatch)
    assert "classifier" not in [report.name for report in me.learn(stream[0])]
    before, rows = values(method_of(me).online), method_of(me).head.weight.detach().clone()
    reports = {report.name: report for report in me.learn(stream[1])}
    assert reports["classifier"].images == 16 and reports["online"].images == 32
    assert reports["classifier"].parameters == sum(p.numel() for p in method_of(me).head.parameters())
    assert all(torch.equal(a, b) for state in steps.online["classifier"] for a, b in zip(state, before, strict=True))
    first, last = (steps.heads["classifier"][k][0] for k in (0, -1))
    assert not torch.equal(first[2:], last[2:])
    assert torch.equal(method_of(me).head.weight[:2], rows)  # of classes that are not the task's


def test_the_surer_expert_answers(backbone: TimmViT, stream: Stream, test: Source) -> None:
    me = learner(backbone, alpha=0.8)
    for task in stream:
        me.learn(task)
    method = method_of(me)
    made = me.engine.compute(test, method.branches, lambda p: {"on": p(method.online), "off": p(method.offline)})
    head = cast(LinearHead, method.head)
    on, off = ((x @ head.weight.T + head.bias).detach() for x in made.values())
    exps = [z.double().exp() for z in (on, off)]
    wanted = torch.stack([e / e.sum(1, keepdim=True) for e in exps]).amax(0)
    parts = me.engine.scores(method, test)
    torch.testing.assert_close(parts["ensemble"].double().exp(), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts["online"], on, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts["offline"], off, rtol=1e-4, atol=1e-4)
    assert (parts["online"].argmax(1) != parts["offline"].argmax(1)).any()


def test_before_the_second_task_there_is_one_expert(backbone: TimmViT, stream: Stream, test: Source) -> None:
    me = learner(backbone)
    me.learn(stream[0])
    parts = me.engine.scores(me.method, test)
    assert me.method.branches == (method_of(me).online,)
    assert torch.equal(parts["online"], parts["offline"])
    torch.testing.assert_close(parts["ensemble"], parts["online"].log_softmax(1))


@pytest.mark.parametrize("phase", ["classifier", "online"])
def test_a_stop_between_two_steps_changes_nothing(
    backbone: TimmViT, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """The average goes on from where it was."""
    straight, stopped = learner(backbone, alpha=0.7), learner(backbone, alpha=0.7)
    for me in (straight, stopped):
        me.learn(stream[0])
    straight.learn(stream[1])
    stopped.save(tmp_path)
    step = Descent.step
    left = [1 if phase == "classifier" else 3]  # two steps an epoch, one epoch of the classifier

    def stops(descent: Descent, batch: Batch, whole: int) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        step(descent, batch, whole)

    monkeypatch.setattr(Descent, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        stopped.learn(stream[1], folder=tmp_path, every=0)
    monkeypatch.setattr(Descent, "step", step)
    again = Learner.load(tmp_path, backbone, progress=False, device="cpu")
    reports: list[PhaseReport] = again.learn(stream[1], folder=tmp_path)
    assert reports
    for name, value in straight.method.state_dict().items():
        assert torch.equal(value, again.method.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["adapter", "lora", "prefix", "prompt", "vpt", "ssf", "sequential_adapter"])
def test_any_kind_of_tuning_accumulates(backbone: TimmViT, stream: Stream, kind: str) -> None:
    me = learner(backbone, tuning=kind, epochs=1, freeze_epochs=0, alpha=0.5)
    for task in stream[:2]:
        me.learn(task)
    method = method_of(me)
    online, offline = (torch.cat([p.flatten() for p in values(t)]) for t in (method.online, method.offline))
    assert method.online.kind == kind and not torch.equal(online, offline)
    wanted = float((online - offline).norm() / online.norm())
    assert method.describe()["apart"] == pytest.approx(wanted)
    assert method.offline.frozen and not method.online.frozen


def test_what_is_forgotten_leaves_both_experts(backbone: TimmViT, stream: Stream, test: Source) -> None:
    me = learner(backbone, alpha=0.8)
    for task in stream:
        me.learn(task)
    before, tunings = me.engine.scores(me.method, test), copy.deepcopy(method_of(me).offline.state_dict())
    stay = [i for i, name in enumerate(me.classes) if name != "b"]
    me.forget("b")
    after = me.engine.scores(me.method, test)
    for part in ("online", "offline"):
        torch.testing.assert_close(after[part], before[part][:, stay], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, tunings[name]) for name, value in method_of(me).offline.state_dict().items())


def test_alpha_over_a_task_does_not_depend_on_its_steps() -> None:
    config = LAEConfig.make(alpha=0.9, alpha_over="task", epochs=5, batch_size=24)
    assert config.kept(5000) ** (5 * 209) == pytest.approx(0.9)
    assert config.kept(1) ** 5 == pytest.approx(0.9)
    assert LAEConfig.make("paper").kept(5000) == 0.9999


@pytest.mark.parametrize(
    "options", [{"alpha": 1.1}, {"alpha": -0.1}, {"freeze_epochs": -1}, {"follow_rate": 0}, {"sigma_init": 0}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        LAEConfig.make(**options)
