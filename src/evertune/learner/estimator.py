"""A learner with the manners of scikit-learn, so that pipelines, cross-validation and clone() can take it.

Nothing of scikit-learn is imported until it asks.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from evertune.errors import ConfigError
from evertune.streams import Task
from evertune.streams.unlabelled import Images, labelled

if TYPE_CHECKING:
    from evertune.learner.learner import Learner
    from evertune.streams import Kind


def task_of(learner: Learner, images: Images, labels: ArrayLike, name: str | None, kind: Kind | None) -> Task:
    """Images and their labels as the learner's next task; see :meth:`Learner.partial_fit`."""
    train = labelled(images, labels, learner.backbone.modality)
    known = set(train.present()) & set(learner.classes)
    number, names = len(learner.history), {entry["task"] for entry in learner.history}
    free = next(new for i in count(number + 1) if (new := f"task {i}") not in names)  # one may have been forgotten
    return Task(number, name or free, train, kind=kind or ("mixed" if known else "class"))


def score(learner: Learner, images: Images, labels: ArrayLike) -> float:
    """Top-1 accuracy, 0 to 1; see :meth:`Learner.score`."""
    truth = labelled(images, labels, learner.backbone.modality)
    wanted = [truth.classes[i] for i in truth.labels.tolist()]
    return float(np.mean([answer == name for answer, name in zip(learner.predict(images), wanted, strict=True)]))


def changed(learner: Learner, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments after some of them are changed.

    Raises
    ------
    ConfigError
        The learner has learned something.
    """
    if learner.history:
        raise ConfigError(
            f"This learner has learned {len(learner.history)} tasks and stays what it is: sklearn.base.clone(learner) "
            "gives an untrained one, which can be set otherwise."
        )
    kept = dict(learner.settings)
    if settings.get("method", kept["method"]) != kept["method"]:  # its options mean nothing to another one
        named = inspect.signature(type(learner)).parameters
        kept = {name: value for name, value in kept.items() if name in named} | {"preset": None}
    changed = kept | dict(settings)
    if changed["backbone"] == learner.settings["backbone"]:
        changed["backbone"] = learner.backbone  # no need to load it again
    return changed


def tags() -> Any:
    """What scikit-learn from 1.6 on asks of an estimator."""
    from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

    return Tags(
        estimator_type="classifier",
        target_tags=TargetTags(required=True),
        classifier_tags=ClassifierTags(),
        input_tags=InputTags(two_d_array=False, three_d_array=True, string=True),
    )
