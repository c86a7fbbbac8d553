"""Several data sets in one stream: what accumulation opens and reuses, and few shots on what it kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evertune import Learner, Stream, Task, load_backbone, open_data, run
from evertune.backbones import TimmViT
from evertune.few_shot import few_shot
from evertune.statistics import TaskCentroids
from evertune.streams import ArraySource, Source

Data = tuple[ArraySource, ArraySource]


def stripes(classes: int, each: int, seed: int) -> ArraySource:
    """Images that look like no spot: stripes of one direction, closer together from class to class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    phase = rng.uniform(0, 2 * np.pi, len(labels))[:, None, None]
    waves = np.sin((0.5 + 0.4 * labels)[:, None, None] * np.arange(32)[None, None] + phase)
    pixels = 128 + 100 * np.repeat(waves, 32, axis=1) + rng.normal(0, 8, (len(labels), 32, 32))
    return ArraySource(pixels.clip(0, 255).astype(np.uint8), labels, [f"stripe {c}" for c in range(classes)])


@pytest.fixture
def stream(blobs: Data) -> Stream:
    """Spots and stripes in turns, two tasks of two classes of each; two classes of each are never taught."""
    parts = {"spots": blobs, "stripes": (stripes(6, 12, 0), stripes(6, 5, 1))}
    streams = {}
    for key, data in parts.items():
        train, test = (part.select(part.labels < 4) for part in data)
        streams[key] = Stream.class_incremental(train, test, first=2, increment=2, order_seed=None)
    return Stream.chain(streams, interleave=True)


def make_learner(tiny: TimmViT, **options: Any) -> Learner:
    settings: dict[str, Any] = {
        "preset": "evertune", "blocks": "0-1", "batch_size": 8, "epochs": 2, "shared_epochs": 2, "centroids": 3,
        "tii_epochs": 2, "tap_epochs": 2, "accumulate": True, "accumulate_quantile": 0.5, "progress": False,
        "device": "cpu",
    }  # fmt: skip
    return Learner("hide_pet", tiny, **settings | options)


def between(learner: Learner, stream: Stream) -> float:
    """A threshold between the tasks of one data set and those of two, from training features."""
    features = [learner.engine.features(task.train) for task in stream]
    distances = []
    for new, known in ((1, 0), (2, 0), (3, 1)):
        centroids = TaskCentroids(3, quantile=0.5)
        centroids.add(features[known], 0, learner.method.generators.sampling)
        match = centroids.nearest(features[new])
        assert match is not None
        distances.append(match.distance)
    across, *within = distances
    assert across > 1.1 * max(within)
    return (across + max(within)) / 2


def test_each_data_set_opens_one_set_and_few_shots_find_it(
    tiny: TimmViT, blobs: Data, stream: Stream, tmp_path: Path
) -> None:
    threshold = between(make_learner(tiny), stream)
    learner = make_learner(tiny, accumulate_threshold=threshold)
    result = run(stream, learner, tmp_path / "run", references=False)
    assert [entry["shared set"] for entry in learner.history] == [0, 1, 0, 1]
    assert [entry["opened"] for entry in learner.history] == [True, True, False, False]
    assert result.matrix.names == ("spots/task 1", "stripes/task 1", "spots/task 2", "stripes/task 2")
    for shared, pool in enumerate((blobs[0], stripes(6, 5, 2))):
        held = pool.select(np.flatnonzero(pool.labels >= 4))
        assert few_shot(learner, held).shared == shared
    kept = Learner.load(tmp_path / "run/learner", tiny)
    support, query = stripes(6, 3, 3), stripes(6, 5, 4)
    assert few_shot(kept, support).predict(query) == few_shot(learner, support).predict(query)


def test_a_chain_goes_on_where_it_stopped(tiny: TimmViT, stream: Stream, tmp_path: Path) -> None:
    def stop(stage: int, matrix: object) -> None:
        if stage == 1:
            raise KeyboardInterrupt

    whole = run(stream, make_learner(tiny), tmp_path / "whole", references=False)
    with pytest.raises(KeyboardInterrupt):
        run(stream, make_learner(tiny), tmp_path / "stopped", references=False, on_stage=stop)
    assert run(stream, make_learner(tiny), tmp_path / "stopped", references=False).matrix == whole.matrix


@pytest.mark.real
def test_real_data_sets_are_told_apart(shared: Path) -> None:
    """A low quantile of the distances opens one set for each data set; the released criterion opens fewer."""
    images = shared / "data/images"
    streams = {}
    for name in ("mnist", "cifar10"):
        streams[name] = Stream.class_incremental(
            *open_data(images / f"{name}_sub.npz"), first=5, increment=5, order_seed=None, train_per_class=20
        )
    omniglot, _ = open_data(images / "omniglot_small.npz")
    alphabets = [[c for c in omniglot.classes if c.startswith(a)] for a in ("Balinese", "Greek")]
    streams["omniglot"] = Stream([Task(i, a[0], of(omniglot, a, 10)) for i, a in enumerate(alphabets)])
    caltech, _ = open_data(images / "caltech101_sub.zip")
    order = np.random.RandomState(1993).permutation(caltech.classes).tolist()
    streams["caltech101"] = Stream(
        [Task(i, f"task {i}", of(caltech, order[15 * i : 15 * i + 15], 15)) for i in range(2)]
    )
    backbone = load_backbone(
        "vit_tiny_patch16_224",
        weights=shared / "data/weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.f32.safetensors",
        input_size=96,
        preprocessing="native",
    )
    engine = Learner("simple_cil", backbone, precision="bf16", progress=False).engine
    features = [engine.features(task.train) for task in Stream.chain(streams, interleave=True)]

    def domains(threshold: float, **criterion: Any) -> list[int]:
        known, generator = TaskCentroids(**criterion), torch.Generator().manual_seed(0)
        for x in features:
            known.add(x, known.assign(known.nearest(x), threshold), generator)
        return known.domain.tolist()

    assert domains(0.8, quantile=0.04) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert max(domains(1.0, order=5)) < 3


def of(source: Source, names: list[str], each: int) -> Source:
    return source.select(np.concatenate([source.rows_of([name])[:each] for name in names]))
