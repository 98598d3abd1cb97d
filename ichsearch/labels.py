"""The six labels of a head-CT slice, in the order in which every file and tensor of ichsearch holds them.

Names and the weights of the challenge's metric: RSNA Intracranial Hemorrhage Detection 2019.
"""

from typing import Final

SUBTYPES: Final = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
ANY: Final = "any"
LABELS: Final = (*SUBTYPES, ANY)

LOSS_WEIGHTS: Final = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0)
"""Weight of each label in the weighted log loss: the challenge counts `any` twice."""
