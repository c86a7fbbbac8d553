"""What a prediction is, and what it depends on."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evertune.backbones import Passes
from evertune.learner import Learner
from evertune.testing.material import CLASSES
from evertune.testing.subject import Subject
from evertune.testing.suite import check, require, require_near


@check
def scores_are_finite_over_all_classes_seen(subject: Subject) -> None:
    """At every time each part of the scores is float32 [N, K], finite, and the first part is the answer."""
    for number, stage in enumerate(subject.course.stages, 1):
        for part, scores in stage.parts.items():
            shape = tuple(scores.shape)
            wanted = (len(subject.examples()), len(stage.classes))
            require(shape == wanted, f"after task {number} the part {part!r} has shape {shape} instead of {wanted}.")
            require(scores.dtype == torch.float32, f"the part {part!r} is {scores.dtype} instead of float32.")
            require(scores.isfinite().all(), f"after task {number} the part {part!r} is not finite everywhere.")
    learner, x = subject.taught, subject.examples()
    answer = next(iter(subject.course.stages[2].parts.values()))
    require(torch.equal(learner.scores(x), answer), "the learner's scores are not the first part of the method's.")
    named = [CLASSES[i] for i in answer.argmax(1).tolist()]
    require(learner.predict(x) == named, "the predicted names are not those of the highest scores.")


@check
def predicting_changes_nothing(subject: Subject) -> None:
    """Asking for scores leaves the state as it was, and the method in evaluation mode."""
    changed = subject.course.answered
    require(not changed, f"scores() changed the state: {', '.join(changed[:5])}.")
    learner = subject.taught
    learner.scores(subject.examples())
    require(not learner.method.training, "the method is left in training mode.")


@check
def predictions_do_not_depend_on_companions(subject: Subject) -> None:
    """The scores of an example are the same in any batch, in any order, and alone."""
    x = subject.examples(30)
    learner = subject.taught
    together = learner.scores(x)
    order = np.random.default_rng(0).permutation(len(x))
    shuffled = torch.empty_like(together)
    shuffled[order] = learner.scores(x[order])
    require_near(shuffled, together, "in another order")
    require_near(learner.scores(x[::3]), together[::3], "among other companions")
    for size in (1, 30):
        other = subject.after(3, eval_batch=size).scores(x)
        require_near(other, together, f"in batches of {size} instead of 8")


@check
def no_task_is_identified(subject: Subject) -> None:
    """Prediction is told nothing but inputs: what is found in all examples is found in the examples of each task."""
    told = list(inspect.signature(subject.method.scores).parameters)
    require(told == ["self", "passes"], f"scores() takes {', '.join(told)}; it is given the passes of a batch alone.")
    learner, test = subject.taught, subject.data(30, seed=1)
    whole = learner.evaluate(test)
    parts = [learner.evaluate(test.select(test.rows_of(names))) for names in ("abc", "de", "f")]
    for name, counted in whole.items():
        summed = tuple(sum(part[name][i] for part in parts) for i in (0, 1))
        require(counted == summed, f"{name}: {counted} of all examples together are right, {summed} task by task.")


@check
def scores_ask_for_the_declared_branches(subject: Subject) -> None:
    """``branches`` are the tunings that scores() asks for, each once; one that routes declares all it may choose."""
    for number in (1, 2, 3):
        learner = subject.after(number)
        asked: list[Any] = []
        routed: list[Any] = []
        forwards: list[int] = []

        def read(
            passes: Passes,
            learner: Learner = learner,
            asked: list[Any] = asked,
            routed: list[Any] = routed,
            forwards: list[int] = forwards,
        ) -> dict[str, Tensor]:
            watched = _Asked(learner.backbone, passes.inputs, asked, routed)
            learner.method.scores(watched)
            forwards.append(watched.forwards)
            return {}

        learner.engine.compute(subject.data(2), learner.method.branches, read)
        declared = {id(t) for t in learner.method.branches}
        found = {id(t) for t in asked}
        require(
            found | {id(t) for t in routed} <= declared,
            f"after task {number} scores() asks the passes for a tuning that is not among its branches.",
        )
        require(routed or found == declared, f"after task {number} scores() does not ask for all of its branches.")
        most = len(found) + bool(routed)
        require(forwards == [most], f"after task {number} {forwards[0]} passes were made for {most} branches.")


class _Asked(Passes):
    """Notes what is asked for."""

    def __init__(self, backbone: Any, inputs: Tensor, asked: list[Any], routed: list[Any]) -> None:
        super().__init__(backbone, inputs)
        self.asked, self.chosen = asked, routed

    def __call__(self, tuning: Any = None) -> Tensor:
        self.asked.append(tuning)
        return super().__call__(tuning)

    def routed(self, slots: Any, ids: Tensor) -> Tensor:
        self.chosen.extend(slots[i] for i in set(ids.tolist()))
        return super().routed(slots, ids)

    def steered(self, pool: Any, choice: Tensor) -> Tensor:
        self.asked.append(pool)
        return super().steered(pool, choice)


@check
def remembered_features_change_no_score(subject: Subject) -> None:
    """Evaluated again and again as tasks arrive, features of frozen branches are remembered, and scores stay."""
    learner, test = subject.learner(), subject.data(12, seed=1)
    for number, (task, stage) in enumerate(zip(subject.tasks(), subject.course.stages, strict=True), 1):
        learner.learn(task)
        for _ in range(2):
            parts = learner.engine.scores(learner.method, test, remember=True)
            for name, fresh in stage.parts.items():
                require_near(parts[name], fresh, f"after task {number}, from remembered features, in {name!r}")


@check
def bf16_is_near_fp32(subject: Subject) -> None:
    """In bfloat16 the same learner gives nearly the same scores, and goes on learning."""
    learner, x = subject.after(3, precision="bf16"), subject.examples(30)
    scores, exact = learner.scores(x), subject.taught.scores(x)
    require(scores.isfinite().all(), "in bfloat16 the scores are not finite.")
    spread = float(exact.std(0).mean())
    off = float((scores - exact).square().mean().sqrt())
    require(off <= BF16 * spread, f"in bfloat16 the scores are {off / spread:.0%} of their spread away from float32's.")
    task = subject.task(3, CLASSES, rows=12, seed=5, kind="domain")
    learner.learn(task)
    require(learner.scores(x).isfinite().all(), "after learning in bfloat16 the scores are not finite.")


BF16 = 0.2
"""How far scores may be, root mean square, of their spread over examples."""
