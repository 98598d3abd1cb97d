"""What a model is asked: which labels it has an output for, and which slices it learns from and is judged on.

In: a task and the labels of a data set. Out: names of labels, a mask of slices.
"""

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ichsearch.labels import ANY, LABELS, SUBTYPES

Task = Literal["any", "multilabel", "positives"]
"""Any haemorrhage or none; all six labels; the subtype of slices that are known to bleed (the paper's two stages)."""

_LABELS: Final[dict[Task, tuple[str, ...]]] = {"any": (ANY,), "multilabel": LABELS, "positives": SUBTYPES}


def task_labels(task: Task) -> tuple[str, ...]:
    """The labels of a task, in the order of the model's outputs."""
    return _LABELS[task]


def task_columns(task: Task) -> list[int]:
    """Where the task's labels stand among the six."""
    return [LABELS.index(label) for label in task_labels(task)]


def task_rows(task: Task, labels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(N,) which slices belong to the task, of (N, 6) labels in {0, 1}, NaN for unlabelled ones, which never do."""
    bleeds = labels[:, LABELS.index(ANY)]
    return bleeds == 1 if task == "positives" else ~np.isnan(bleeds)
