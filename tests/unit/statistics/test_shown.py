"""Which classes each task showed, and which tasks go with them."""

from __future__ import annotations

from evertune.statistics import ShownClasses


def test_a_task_goes_with_its_last_class() -> None:
    shown = ShownClasses()
    for task, present in enumerate([(0, 1), (2,), (1, 3)]):
        shown.add(task, present)
    assert shown.forget([2]) == [1]
    assert list(zip(shown.tasks.tolist(), shown.classes.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1), (1, 2)]
    assert shown.forget([0]) == [] and shown.forget([0, 1]) == [0, 1]


def test_the_table_of_tasks_and_classes() -> None:
    shown = ShownClasses()
    for task, present in enumerate([(0, 1), (2,), (1, 3)]):
        shown.add(task, present)
    yes, no = True, False
    assert shown.table.tolist() == [[yes, yes, no, no], [no, no, yes, no], [no, yes, no, yes]]
