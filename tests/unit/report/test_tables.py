from __future__ import annotations

from evertune.evaluation import AccuracyMatrix, summary
from evertune.report import matrix_table, summary_table


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
