"""What a learner says it keeps, and what is left when it is told to forget."""

from __future__ import annotations

import torch

from evertune.errors import ConfigError
from evertune.methods.stored import UNSAID
from evertune.testing.state import size_of, state_of
from evertune.testing.subject import Subject
from evertune.testing.suite import check, require, require_same


@check
def what_is_kept_is_said(subject: Subject) -> None:
    """stored() accounts for every byte of the state, and says of each what of the data it is."""
    learner = subject.taught
    kept = learner.method.stored()
    unsaid = [each.name for each in kept if not each.of_data or each.of_data == UNSAID]
    require(
        not unsaid,
        f"nothing says what of the data these tensors keep: {', '.join(unsaid[:5])}. Say it in the class variable "
        "of_data of the module that has them.",
    )
    said, held = sum(each.bytes for each in kept), size_of(dict(learner.method.state_dict()))
    require(said == held, f"stored() accounts for {said} bytes, and the state has {held}.")


@check
def a_forgotten_class_is_gone_and_the_rest_stays(subject: Subject) -> None:
    """A class or task is forgotten, or refused with a reason; the rest predicts, and learning goes on."""
    learner, x = subject.after(2), subject.examples()
    before, scores = state_of(learner), learner.scores(x)
    try:
        forgotten = learner.forget("b")
    except ConfigError as error:
        require("cannot forget" in str(error), f"forgetting ended in an error that gives no reason: {error}")
        require_same(state_of(learner), before, "After forgetting was refused")
        return
    require(learner.classes == tuple("acde"), f"after b was forgotten the classes are {learner.classes}.")
    left = learner.scores(x)
    require(
        left.shape == (len(x), 4), f"after one of 5 classes was forgotten the scores have shape {tuple(left.shape)}."
    )
    require(left.isfinite().all(), "after a class was forgotten some scores are not finite.")
    same = torch.allclose(left, scores[:, [0, 2, 3, 4]], rtol=1e-4, atol=1e-5)
    require(
        same or forgotten.remains,
        "after a class was forgotten the scores of the others changed, and forget() does not say why.",
    )
    learner.learn(subject.task(2, "bf", rows=18))
    require(learner.classes == tuple("acdebf"), f"learned anew after it was forgotten: {learner.classes}.")
    require(learner.scores(x).isfinite().all(), "learned on after forgetting, some scores are not finite.")
    learner.forget(task="task 2")
    require(learner.classes == tuple("acbf"), f"after the task of d and e was forgotten: {learner.classes}.")
    folder = subject.place()
    learner.save(folder)
    kept = subject.load(folder)
    require_same(state_of(kept), state_of(learner), "Kept after forgetting")
    require(torch.equal(kept.scores(x), learner.scores(x)), "kept after forgetting, the scores are others.")
