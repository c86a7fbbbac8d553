"""What stands beside every method: the nearest mean of frozen features (floor) and a ridge on all data at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.learner import Learner
from evertune.statistics import ClassMeans, Gram, holdout, select_ridge
from evertune.streams import Source, Stream

GRID = tuple(10.0**p for p in range(-4, 9))


def references(learner: Learner, stream: Stream) -> dict[str, float]:
    """Accuracy (%) over all test images after the last task of two classifiers on the learner's plain backbone.

    ``nearest mean`` is SimpleCIL; ``joint ridge`` is one linear ridge on the standardised frozen features of all tasks
    together, its strength held out from the training data. Both cost one plain pass over the data.
    """
    tested = [task.test for task in stream if task.test is not None and len(task.test)]
    index = {name: i for i, name in enumerate(stream.classes)}
    x, y = _join(learner, [task.train for task in stream], index)
    x_test, y_test = _join(learner, tested, index, remember=True)
    means = ClassMeans()
    means.update(x, y)
    nearest = F.normalize(x_test, dim=1) @ F.normalize(means.means, dim=1).T

    centre, spread = x.mean(0), x.std(0).clamp_min(1e-6)
    x, x_test = (torch.cat([(f - centre) / spread, torch.ones(len(f), 1)], 1) for f in (x, x_test))
    fit, held = holdout(y, 0.2, torch.Generator().manual_seed(0))
    strength = select_ridge(x, y, GRID, fit, held).strength
    gram = Gram()
    gram.update(x, y)
    ridge = x_test.double() @ gram.solve(strength)
    return {"nearest mean": _accuracy(nearest, y_test), "joint ridge": _accuracy(ridge, y_test)}


def _join(
    learner: Learner, sources: list[Source], index: dict[str, int], remember: bool = False
) -> tuple[Tensor, Tensor]:
    features = torch.cat([learner.engine.features(source, remember=remember) for source in sources])
    labels = [np.array([index.get(name, -1) for name in s.classes])[s.labels] for s in sources]
    return features, torch.as_tensor(np.concatenate(labels))


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return 100 * float((scores.argmax(1) == labels).double().mean())
