"""Long-tailed training data: few classes with many examples, many with few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from evertune.errors import StreamError, nearest
from evertune.streams.order import arrange, leading, require_seed, rows_by_class
from evertune.streams.source import Source, Subset

Tail = Literal["shuffled", "descending"]


def tail_counts(largest: int, classes: int, factor: float) -> list[int]:
    """n_c = n_max · factor^(−c/(C−1)), rounded down and at least 1: the exponential profile of Cui et al. (2019).

    >>> tail_counts(500, 5, 100)
    [500, 158, 50, 15, 5]
    """
    shrink = [factor ** (-c / max(classes - 1, 1)) for c in range(classes)]
    return [max(1, int(largest * share + 1e-9)) for share in shrink]


def long_tailed(
    source: Source,
    factor: float,
    *,
    seed: int = 0,
    order: Tail = "shuffled",
    classes: Sequence[str] | None = None,
) -> Subset:
    """A part of ``source`` in which the largest class has ``factor`` times the examples of the smallest.

    Class number c of C keeps n_max · factor^(−c/(C−1)) examples, where n_max is the count of the largest class now
    (Cui et al., Class-Balanced Loss, CVPR 2019). A class that has fewer than its share keeps all. Use it on training
    data; test data stays as it is.

    Parameters
    ----------
    factor : imbalance factor ρ, at least 1.
    seed : which examples of a class stay, drawn class by class, and the shuffle of the classes.
    order : ``"shuffled"`` puts the classes along the profile at random, ``"descending"`` in the order of ``classes``,
        so that early tasks are large (Shuffled and Ordered LT-CIL of Liu et al., ECCV 2022).
    classes : all classes in order of arrival; by default the source's own order.

    Raises
    ------
    StreamError
        A factor below 1, an unknown order, no examples.
    """
    if not (np.isfinite(factor) and factor >= 1):
        raise StreamError(f"imbalance is {factor}; it must be a number of at least 1: largest class over smallest.")
    if order not in get_args(Tail):
        raise StreamError(f"The order of a long tail cannot be {order!r}. {nearest(str(order), get_args(Tail))}")
    rows = rows_by_class(source, seed)
    if not rows:
        raise StreamError(f"{source.name} has no training examples.")
    names = arrange(source.present(), classes, None, "classes")
    if order == "shuffled":
        require_seed(seed, "imbalance_seed")
        names = tuple(names[i] for i in np.random.default_rng(seed).permutation(len(names)))
    largest = max(len(own) for own in rows.values())
    counts = dict(zip(names, tail_counts(largest, len(names), factor), strict=True))
    return source.select(leading(rows, counts))
