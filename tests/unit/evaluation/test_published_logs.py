"""Matrices rebuilt from published training logs, whole counts from the percentages printed with two decimals.

The logs are of one method in PILOT's code base (EASE, CVPR 2024, in-21k backbone, class order 1993), for data sets with
tasks of equal and of very unequal size. Group sizes are the only ones that fit all percentages printed. What the log
says of itself must come out under PILOT's convention; what sample and task weighting and the forms of forgetting make
of the same answers is what a comparison of two code bases would mistake for a difference between methods.
"""

from __future__ import annotations

import pytest

from evertune.evaluation import AccuracyMatrix, what_would_print
from evertune.evaluation.metrics import average_accuracy

VTAB = """
    962
    957 338
    958 332 927
    943 325 927 5031
    943 325 927 5034 834
"""
VTAB_TOTALS = [1000, 400, 985, 5400, 834]
VTAB_CURVE = [96.2, 92.5, 92.96, 92.82, 93.55]

IMAGENET_A = """
    144
    128 144
    122 132 84
    106 116 74 173
    95 116 70 170 98
    94 109 69 167 95 86
    84 106 65 154 94 84 85
    81 104 66 153 91 82 83 62
    79 102 61 151 88 82 83 61 69
    79 100 61 149 87 77 81 61 69 72
"""
IMAGENET_A_TOTALS = [175, 185, 116, 222, 143, 134, 146, 127, 147, 124]
IMAGENET_A_CURVE = [82.29, 75.56, 71.01, 67.19, 65.28, 63.59, 59.95, 57.85, 55.63, 55.04]

CIFAR100 = """
    497
    492 490
    492 481 486
    492 478 484 475
    491 473 479 475 489
    487 445 473 466 489 487
    487 443 473 456 489 487 429
    471 442 469 453 488 484 428 483
    464 444 448 450 488 484 426 480 468
    462 435 435 448 487 462 423 457 467 474
    454 435 434 448 485 456 416 453 463 468 438
    454 435 432 448 485 456 416 452 463 468 441 449
    454 432 430 443 485 455 415 449 462 468 442 403 469
    445 430 424 441 485 454 414 447 461 465 440 401 463 480
    444 429 420 441 485 454 414 446 459 464 440 387 431 475 441
    444 422 421 440 485 454 413 443 457 428 398 366 423 475 424 451
    441 415 415 439 484 450 408 444 456 418 393 364 415 475 421 450 450
    441 413 411 439 483 450 408 444 456 418 393 364 412 474 418 445 451 429
    435 414 410 438 482 450 408 444 452 418 392 364 410 473 418 445 450 429 464
    432 414 409 437 483 449 408 442 451 417 389 361 409 473 417 440 450 427 463 409
"""
CIFAR100_TOTALS = [500] * 20
CIFAR100_CURVE = [
    99.4, 98.2, 97.27, 96.45, 96.28, 94.9, 93.26, 92.95, 92.27, 91.0,
    90.0, 89.98, 89.34, 89.29, 88.4, 86.8, 86.33, 86.1, 86.27, 85.8,
]  # fmt: skip


def rebuilt(rows: str, totals: list[int]) -> AccuracyMatrix:
    matrix = AccuracyMatrix()
    for stage, line in enumerate(rows.split("\n")[1:-1]):
        for group, correct in enumerate(map(int, line.split())):
            matrix.record(stage, group, correct, totals[group])
    return matrix


VTAB_MATRIX = rebuilt(VTAB, VTAB_TOTALS)
IMAGENET_A_MATRIX = rebuilt(IMAGENET_A, IMAGENET_A_TOTALS)
CIFAR100_MATRIX = rebuilt(CIFAR100, CIFAR100_TOTALS)


def number(matrix: AccuracyMatrix, convention: str, quantity: str) -> float:
    return what_would_print(matrix, conventions=[convention])[convention]["numbers"][quantity]["value"]


@pytest.mark.parametrize(
    ("matrix", "curve", "average"),
    [
        (VTAB_MATRIX, VTAB_CURVE, 93.606),
        (IMAGENET_A_MATRIX, IMAGENET_A_CURVE, 65.339),
        (CIFAR100_MATRIX, CIFAR100_CURVE, 91.5145),
    ],
)
def test_pilots_convention_prints_what_the_log_holds(
    matrix: AccuracyMatrix, curve: list[float], average: float
) -> None:
    printed = what_would_print(matrix, conventions=["pilot"])["pilot"]
    assert printed["curve"] == curve
    assert printed["numbers"]["final_accuracy"]["value"] == curve[-1]
    assert printed["numbers"]["average_accuracy"]["value"] == pytest.approx(average, abs=1e-9)


@pytest.mark.parametrize(
    ("matrix", "final_sample", "final_task", "average_sample", "average_task"),
    [
        (CIFAR100_MATRIX, 85.80, 85.80, 91.51, 91.51),
        (IMAGENET_A_MATRIX, 55.04, 54.57, 65.34, 64.93),
        (VTAB_MATRIX, 93.55, 92.58, 93.61, 92.11),
    ],
)
def test_sample_against_task_mean_of_the_same_answers(
    matrix: AccuracyMatrix, final_sample: float, final_task: float, average_sample: float, average_task: float
) -> None:
    for name, printed in (
        ("pilot", final_sample), ("ntk-cl", final_sample), ("safe", final_sample), ("avalanche-trained", final_sample),
        ("libcontinual", final_sample), ("ranpac", final_task), ("mammoth", final_task),
        ("libcontinual-task", final_task),
    ):  # fmt: skip
        assert number(matrix, name, "final_accuracy") == printed, name
    assert round(number(matrix, "hide-pet", "final_accuracy"), 2) == final_task
    assert number(matrix, "libcontinual", "average_accuracy") == average_sample
    assert number(matrix, "libcontinual-task", "average_accuracy") == average_task
    assert average_accuracy(*matrix.counts(), weight="sample") == pytest.approx(average_sample, abs=0.006)
    assert average_accuracy(*matrix.counts(), weight="task") == pytest.approx(average_task, abs=0.006)


def test_three_forgettings_and_two_backward_transfers_of_the_same_answers() -> None:
    assert round(number(CIFAR100_MATRIX, "pilot", "forgetting"), 2) == 7.19
    assert number(CIFAR100_MATRIX, "avalanche", "forgetting") == 7.14
    assert round(number(CIFAR100_MATRIX, "libcontinual", "forgetting"), 2) == 7.13
    assert number(CIFAR100_MATRIX, "avalanche", "backward_transfer") == -7.14
    assert number(CIFAR100_MATRIX, "libcontinual", "backward_transfer") == -5.71
    assert round(number(IMAGENET_A_MATRIX, "lopez-paz", "backward_transfer"), 2) == -12.17
    assert number(IMAGENET_A_MATRIX, "libcontinual", "backward_transfer") == -12.24
