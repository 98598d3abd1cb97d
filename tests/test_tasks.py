"""Tasks: their labels and the slices that belong to them."""

import numpy as np
import pytest

from ichsearch.data.tasks import Task, task_columns, task_labels, task_rows
from ichsearch.labels import LABELS

NAN = float("nan")
#                 epidural, intraparenchymal, intraventricular, subarachnoid, subdural, any
TABLE = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 1, 1],
        [NAN] * 6,
        [0, 0, 0, 0, 0, 1],  # bleeds, nobody said how
    ],
    np.float32,
)


def test_the_labels_of_each_task() -> None:
    assert task_labels("any") == ("any",)
    assert task_labels("multilabel") == LABELS
    assert task_labels("positives") == (
        "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural",
    )  # fmt: skip


@pytest.mark.parametrize("task", ["any", "multilabel", "positives"])
def test_columns_are_where_the_labels_stand(task: Task) -> None:
    assert tuple(np.array(LABELS)[task_columns(task)]) == task_labels(task)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("any", [True, True, False, True]),
        ("multilabel", [True, True, False, True]),
        ("positives", [False, True, False, True]),
    ],
)
def test_unlabelled_slices_never_belong_and_only_positives_asks_for_blood(task: Task, expected: list[bool]) -> None:
    assert task_rows(task, TABLE).tolist() == expected
