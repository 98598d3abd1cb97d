"""What kind of cohort is drawn: how hard it is, how often it bleeds, and whether position may tell.

In: the options of `write_cohort`. Out: a checked `Design` that the other modules read.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from ichsearch.errors import ConfigError
from ichsearch.phantom.geometry import BASE_MM, VERTEX_MM

Prevalence = Literal["half", "rsna"]

_EVEN_RANGE_MM: Final = (-28.0, 50.0)
"""Heights between which every slice shows brain at its widest and all spaces that blood can fill are near."""


@dataclass(frozen=True)
class Design:
    """Options of a cohort; the default is the plain one.

    `hard`: subtle haemorrhages, and structures that mislead in every patient. `prevalence`: half of the patients
    bleed, or slices are positive as often as in the RSNA 2019 set. `even_position`: a slice's place in its series says
    nothing about its label.
    """

    hard: bool = False
    prevalence: Prevalence = "half"
    even_position: bool = False

    def __post_init__(self) -> None:
        """ConfigError if the prevalence is unknown."""
        if self.prevalence not in get_args(Prevalence):
            known = " or ".join(get_args(Prevalence))
            raise ConfigError(f"prevalence must be {known}, but got {self.prevalence!r}; name one of these")

    @property
    def scanned_mm(self) -> tuple[float, float]:
        """Lowest and highest scanned height in the head frame."""
        return _EVEN_RANGE_MM if self.even_position else (BASE_MM, VERTEX_MM)


PLAIN: Final = Design()
