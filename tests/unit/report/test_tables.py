from __future__ import annotations

from evertune.evaluation import AccuracyMatrix, summary, what_would_print
from evertune.report import conventions_table, formulas_text, matrix_table, summary_table


def pets() -> AccuracyMatrix:
    matrix = AccuracyMatrix("mixture")
    for part, rows in {"mixture": [[10], [5, 40]], "slow": [[9], [4, 38]]}.items():
        for stage, row in enumerate(rows):
            for group, correct in enumerate(row):
                matrix.record(
                    stage, group, correct, [10, 40][group], part=part, name=["cat", "a very long name"][group]
                )
    return matrix


def test_matrix_table() -> None:
    assert matrix_table(pets()) == "\n".join(
        [
            "after             cat  a very long n…    all   mean",
            "---------------------------------------------------",
            "cat             100.0                  100.0  100.0",
            "a very long n…   50.0           100.0   90.0   75.0",
            "---------------------------------------------------",
            "examples           10              40     50",
        ]
    )


def test_matrix_table_of_another_part() -> None:
    assert "40.0            95.0  84.0  67.5" in matrix_table(pets(), "slow")


def test_a_group_without_test_examples_is_a_dash() -> None:
    matrix = AccuracyMatrix()
    matrix.record(0, 0, 0, 0)
    matrix.record(1, 0, 0, 0)
    matrix.record(1, 1, 1, 2)
    rows = [line.split() for line in matrix_table(matrix).splitlines()]
    assert rows[2] == ["task", "1", "-", "-", "-"]
    assert rows[3] == ["task", "2", "-", "50.0", "50.0", "50.0"]


def test_summary_table() -> None:
    assert summary_table(summary(pets())) == "\n".join(
        [
            "percent                                 mixture    slow",
            "-------------------------------------------------------",
            "final accuracy, over test examples        90.00   84.00",
            "final accuracy, mean of tasks             75.00   67.50",
            "average accuracy, over test examples      95.00   87.00",
            "average accuracy, mean of tasks           87.50   78.75",
            "forgetting, last stage in the best        50.00   50.00",
            "forgetting, last stage not in the best    50.00   50.00",
            "backward transfer                        -50.00  -50.00",
        ]
    )


def test_summary_table_shows_what_is_missing_or_unknown() -> None:
    table = summary_table({"a": {"backward_transfer": 1.0}, "b": {"own_metric": 2.0}})
    assert [line.split()[-2:] for line in table.splitlines()[2:]] == [["1.00", "-"], ["-", "2.00"]]
    assert "own_metric" in table


def test_a_task_to_come_stands_in_parentheses() -> None:
    matrix = pets()
    matrix.record(0, 1, 10, 40, ahead=True)
    assert matrix_table(matrix).splitlines()[2] == "cat             100.0          (25.0)  100.0  100.0"
    assert matrix_table(matrix, "slow") == matrix_table(pets(), "slow")


def test_how_often_the_task_was_found_has_a_row() -> None:
    matrix = pets()
    for stage, group, correct in ((0, 0, 10), (1, 0, 8), (1, 1, 20)):
        matrix.record(stage, group, correct, [10, 40][group], part="router")
    rows = [line.rsplit(maxsplit=3) for line in summary_table(summary(matrix)).splitlines()]
    assert ["task found, over test examples", "56.00", "-", "-"] in rows
    assert ["task found, mean of tasks", "65.00", "-", "-"] in rows


def test_conventions_table() -> None:
    printed = what_would_print(pets(), conventions=["pilot", "ranpac", "mammoth", "renate"])
    assert conventions_table(printed, across=3).split("\n\n") == [
        "\n".join(
            [
                "percent            pilot  ranpac  mammoth",
                "-----------------------------------------",
                "final accuracy     90.00   75.00    75.00",
                "average accuracy   95.00",
                "forgetting         50.00            50.00",
                "backward transfer                  -50.00",
                "forward transfer                        -",
            ]
        ),
        "\n".join(
            [
                "percent            renate",
                "-------------------------",
                "final accuracy      75.00",
                "forgetting          50.00",
                "backward transfer  -50.00",
                "forward transfer        -",
            ]
        ),
        "- forward transfer needs the accuracies before anything was learned (a baseline): mammoth, renate",
    ]


def test_numbers_have_the_decimals_they_are_printed_with() -> None:
    matrix = AccuracyMatrix()
    for stage, group, correct in ((0, 0, 1), (1, 0, 2), (1, 1, 1)):
        matrix.record(stage, group, correct, 3)
    table = conventions_table(what_would_print(matrix, conventions=["pilot", "hide-pet", "renate", "libcontinual"]))
    assert table.splitlines()[2].split() == ["final", "accuracy", "50.00", "50.0000", "50.00", "50.00"]
    assert table.splitlines()[3].split() == ["average", "accuracy", "41.665", "41.66"]  # as Python prints 41.665


def test_formulas_text() -> None:
    lines = formulas_text(what_would_print(pets(), conventions=["pilot", "chaudhry"])).splitlines()
    assert lines[0] == "pilot: LAMDA-PILOT trainer.py, utils/toolkit.py"
    assert lines[4] == "  The mean over the stages is of rounded values and not rounded itself."
    assert lines[-1] == "  forgetting        1/(T−1) Σ_{i<T} [max_{i≤k<T} a(k,i) − a(T,i)]"


def test_hundreds_of_stages_are_shown_in_part() -> None:
    matrix = AccuracyMatrix()
    for stage in range(100):
        for group in range(stage + 1):
            matrix.record(stage, group, min(group, 7), 10, name=f"{64 * group + 1}-{64 * group + 64}")
    lines = matrix_table(matrix).splitlines()
    assert [line.split() for line in lines[2:4]] == [["1", "1-64", "0.0", "0.0"], ["6", "321-384", "25.0", "25.0"]]
    assert lines[-1].split() == ["of", "100"]
    assert lines[-3].split()[:2] == ["100", "6337-6400"]
    assert len(lines) == 24
    assert max(map(len, lines)) < 40
