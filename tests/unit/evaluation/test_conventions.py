from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertune.errors import ConfigError, DataError
from evertune.evaluation import CONVENTIONS, PRESETS, AccuracyMatrix, what_would_print

# Four tasks of 10, 20, 5 and 40 test examples. In percent, those of tasks to come in parentheses:
#
#            task 1   task 2   task 3   task 4     all seen        mean seen   all
#   stage 1    90      (25)     (20)     (25)       9/10 = 90      90          (9+5+1+10)/75 = 25/75
#   stage 2   100       90     (100)     (50)      28/30 = 93.333  95          (28+5+20)/75 = 53/75
#   stage 3    70       60       80      (30)      23/35 = 65.714  70          (23+12)/75 = 35/75
#   stage 4    50       95       40       75       56/75 = 74.667  260/4 = 65  56/75
TOTALS = [10, 20, 5, 40]
CORRECT = [[9, 5, 1, 10], [10, 18, 5, 20], [7, 12, 4, 12], [5, 19, 2, 30]]
BASELINE = [0, 10, 20, 25]


def by_hand(*, ahead: bool) -> AccuracyMatrix:
    matrix = AccuracyMatrix()
    for stage, row in enumerate(CORRECT):
        for group, correct in enumerate(row if ahead else row[: stage + 1]):
            matrix.record(stage, group, correct, TOTALS[group], ahead=ahead)
    return matrix


# Falls from the best stage, the last included: task 1 100−50 = 50, task 2 95−95 = 0, task 3 80−40 = 40.
BEST = (50 + 0 + 40) / 3
# Since the stage that learned it: task 1 50−90 = −40, task 2 95−90 = 5, task 3 40−80 = −40.
BACKWARD = (-40 + 5 - 40) / 3
# Task 1 at stage 3: 70−90 = −20, at stage 4: −40; task 2 at stage 4: 5; the other three of six pairs are passed over.
PAIRS = (-20 - 40 + 5) / 6
# Just before it was learned, over the baseline: 25−10, 100−20, 30−25.
FORWARD = (15 + 80 + 5) / 3

EXPECTED = {
    # The rounded curve 90, 93.33, 65.71, 74.67 sums to 323.71.
    "pilot": {"final_accuracy": 74.67, "average_accuracy": 323.71 / 4, "forgetting": BEST},
    "ntk-cl": {"final_accuracy": 74.67, "average_accuracy": 323.71 / 4},
    "safe": {"final_accuracy": 74.67},
    "ranpac": {"final_accuracy": 65},
    "hide-pet": {"final_accuracy": 65, "forgetting": 30, "backward_transfer": -25},
    # Task 3 was better (100) just before it was learned than ever after: (50 + 0 + 60) / 3.
    "mammoth": {
        "final_accuracy": 65, "forgetting": 110 / 3, "backward_transfer": BACKWARD, "forward_transfer": FORWARD,
    },
    "avalanche": {
        "final_accuracy": 74.67, "forgetting": 25, "backward_transfer": -25, "forward_transfer": 33.33,
    },
    "avalanche-trained": {
        "final_accuracy": 74.67, "forgetting": 25, "backward_transfer": -25, "forward_transfer": 33.33,
    },
    # Tasks 1 and 2 of the three old ones: (40 − 5) / 3 = 11.667; 323.71 / 4 = 80.9275; −55 / 6 = −9.1667.
    "libcontinual": {
        "final_accuracy": 74.67, "average_accuracy": 80.93, "forgetting": 11.667, "backward_transfer": -9.17,
    },
    "libcontinual-task": {
        "final_accuracy": 65, "average_accuracy": (90 + 95 + 70 + 65) / 4, "forgetting": 11.667,
        "backward_transfer": -9.17,
    },
    # The last stage is no candidate (task 2: 90−95 = −5), those before learning are: (50 − 5 + 60) / 3.
    "renate": {
        "final_accuracy": 65, "forgetting": 35, "backward_transfer": BACKWARD, "forward_transfer": FORWARD,
    },
    "renate-micro": {
        "final_accuracy": 5600 / 75, "forgetting": 35, "backward_transfer": BACKWARD, "forward_transfer": FORWARD,
    },
    # Best of stages 1 and 2: 100−50 and 90−95. Below the diagonal: (100 + 70 + 60 + 50 + 95 + 40) / 6.
    "continuum": {
        "final_accuracy": 5600 / 75, "average_accuracy": (90 + 2800 / 30 + 2300 / 35 + 5600 / 75) / 4,
        "forgetting": (50 - 5) / 3, "backward_transfer": PAIRS, "forward_transfer": 415 / 6,
    },
    "chaudhry": {"final_accuracy": 65, "forgetting": (50 - 5 + 40) / 3},
    "lopez-paz": {"final_accuracy": 65, "backward_transfer": BACKWARD, "forward_transfer": FORWARD},
}  # fmt: skip


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_number_by_hand(name: str) -> None:
    printed = what_would_print(by_hand(ahead=True), conventions=[name], baseline=BASELINE)[name]["numbers"]
    assert {quantity: number["value"] for quantity, number in printed.items()} == pytest.approx(EXPECTED[name])
    for number in printed.values():
        if number["digits"] is not None:
            assert number["value"] == round(number["value"], number["digits"])


def test_curves_by_hand() -> None:
    printed = what_would_print(by_hand(ahead=True))
    assert printed["pilot"]["curve"] == printed["libcontinual"]["curve"] == [90, 93.33, 65.71, 74.67]
    assert printed["ranpac"]["curve"] == printed["hide-pet"]["curve"] == [90, 95, 70, 65]
    assert printed["avalanche"]["curve"] == [33.33, 70.67, 46.67, 74.67]
    assert printed["avalanche-trained"]["curve"] == printed["pilot"]["curve"]


def test_what_was_not_measured_has_no_value_and_a_reason() -> None:
    printed = what_would_print(by_hand(ahead=False), baseline=0)
    assert printed["avalanche"]["curve"] == [None, None, None, 74.67]
    for name in ("mammoth", "avalanche", "renate", "lopez-paz"):
        number = printed[name]["numbers"]["forward_transfer"]
        assert number["value"] is None and number["reason"] == "needs a(1,2), just before the task was learned"
    number = printed["renate"]["numbers"]["forgetting"]
    assert number["value"] is None and "before the task was learned" in number["reason"]
    # Without its extra metrics Mammoth does not look before the diagonal: 30, not 110/3.
    assert printed["mammoth"]["numbers"]["forgetting"]["value"] == pytest.approx(BEST)


def test_a_baseline_is_asked_for() -> None:
    number = what_would_print(by_hand(ahead=True), conventions=["lopez-paz"])["lopez-paz"]["numbers"][
        "forward_transfer"
    ]
    assert number["value"] is None and "baseline" in number["reason"]
    with pytest.raises(DataError, match=r"baseline has shape \(2,\)"):
        what_would_print(by_hand(ahead=True), baseline=[0, 1])
    with pytest.raises(DataError, match="from 0 to 100"):
        what_would_print(by_hand(ahead=True), baseline=-1)


def test_classes_never_learned_are_wrong_answers() -> None:
    printed = what_would_print(by_hand(ahead=False), new_classes=True, baseline=0)
    # 9, 28, 23 and 56 of all 75.
    assert printed["avalanche"]["curve"] == [12, 37.33, 30.67, 74.67]
    assert printed["renate"]["numbers"]["forgetting"]["value"] == pytest.approx((50 - 5 + 40) / 3)
    assert printed["lopez-paz"]["numbers"]["forward_transfer"]["value"] == 0


def test_the_first_stage_has_nothing_to_forget_and_parts_have_numbers_of_their_own() -> None:
    matrix = AccuracyMatrix("mixture")
    matrix.record(0, 0, 3, 4)
    matrix.record(0, 0, 2, 4, part="slow")
    for part, accuracy in ((None, 75), ("slow", 50)):
        for name, printed in what_would_print(matrix, part, baseline=0).items():
            values = {quantity: number["value"] for quantity, number in printed["numbers"].items()}
            assert values.pop("final_accuracy") == accuracy
            assert values.pop("average_accuracy", accuracy) == accuracy
            assert not any(values.values()), name


def test_groups_without_test_examples_do_not_count() -> None:
    matrix, with_empty = AccuracyMatrix(), AccuracyMatrix()
    for stage in range(3):
        for group in range(stage + 1):
            matrix.record(stage, group, CORRECT[stage][group], TOTALS[group])
    places = [0, 1, 3]  # the third task of four has no test examples
    for stage in range(4):
        for group in range(stage + 1):
            if group == 2:
                with_empty.record(stage, group, 0, 0)
            else:
                row = places.index(stage) if stage in places else 1
                with_empty.record(stage, group, CORRECT[row][places.index(group)], TOTALS[places.index(group)])
    for name in ("pilot", "ranpac", "chaudhry", "lopez-paz", "avalanche-trained"):
        there, here = (what_would_print(one, conventions=[name])[name]["numbers"] for one in (matrix, with_empty))
        for quantity in ("final_accuracy", "forgetting", "backward_transfer"):
            assert there.get(quantity) == here.get(quantity), (name, quantity)


def test_everything_is_plain_and_has_a_formula_and_a_source() -> None:
    printed = what_would_print(by_hand(ahead=False))
    assert json.loads(json.dumps(printed, allow_nan=False)) == printed
    assert list(printed) == list(CONVENTIONS)
    for told in printed.values():
        assert told["source"] and all(number["formula"] for number in told["numbers"].values())


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no convention 'pilott'\. Did you mean 'pilot'"):
        what_would_print(by_hand(ahead=False), conventions=["pilott"])


def test_protocol_presets_name_conventions_that_exist() -> None:
    assert {preset.convention for preset in PRESETS.values()} - {None} <= set(CONVENTIONS)


@st.composite
def matrices(draw: st.DrawFn) -> AccuracyMatrix:
    """Tasks of one size, cells above the diagonal measured."""
    stages, total = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    matrix = AccuracyMatrix()
    for stage in range(stages):
        for group in range(stages):
            matrix.record(stage, group, draw(st.integers(0, total)), total, ahead=True)
    return matrix


@given(matrices())
def test_conventions_agree_where_they_should(matrix: AccuracyMatrix) -> None:
    def values(quantity: str) -> dict[str, float]:
        return {
            name: told["numbers"][quantity]["value"] for name, told in printed.items() if quantity in told["numbers"]
        }

    printed = what_would_print(matrix, baseline=0)
    # Tasks of one size: weighing cannot matter, rounding moves a mean by a hundredth at most.
    final = list(values("final_accuracy").values())
    assert np.ptp(final) <= 0.0101
    fall = values("forgetting")
    assert fall["mammoth"] >= fall["hide-pet"] - 1e-3 >= fall["chaudhry"] - 2e-3
    assert fall["renate"] >= fall["chaudhry"] - 1e-9
    assert fall["avalanche"] == pytest.approx(-values("backward_transfer")["avalanche"], abs=1e-9)
    backward = values("backward_transfer")
    assert backward["continuum"] == pytest.approx(backward["libcontinual"], abs=0.0151)
    for told in printed.values():
        assert told["curve"][-1] == told["numbers"]["final_accuracy"]["value"]
