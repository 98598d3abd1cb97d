"""The CT windows that radiologists read head CT in, with their fields named.

Level and width in HU; sources: RSNA 2019 solutions and fastai's `dicom_windows` (PS3.3 C.11.2.1.2 defines the terms).
"""

from typing import Final, NamedTuple


class Window(NamedTuple):
    """A grey-scale window: `level_hu` is its middle, `width_hu` its extent."""

    level_hu: int
    width_hu: int

    @property
    def low_hu(self) -> int:
        """HU shown as black."""
        return self.level_hu - self.width_hu // 2

    @property
    def high_hu(self) -> int:
        """HU shown as white."""
        return self.level_hu + self.width_hu // 2


BRAIN: Final = Window(level_hu=40, width_hu=80)
SUBDURAL: Final = Window(level_hu=80, width_hu=200)
BONE: Final = Window(level_hu=600, width_hu=2800)
STROKE: Final = Window(level_hu=32, width_hu=8)
SOFT: Final = Window(level_hu=40, width_hu=380)

WINDOWS: Final = {"brain": BRAIN, "subdural": SUBDURAL, "stroke": STROKE, "soft": SOFT, "bone": BONE}
