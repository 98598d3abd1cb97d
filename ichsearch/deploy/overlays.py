"""Where a model looked: Grad-CAM over the slices that decide a study, as PNG.

In: the highest slices of a study, a predictor. Out: a picture a slice, left as it is, right with heat.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from ichsearch.deploy.models import Predictor
from ichsearch.deploy.prediction_files import Scored
from ichsearch.errors import ConfigError
from ichsearch.labels import ANY
from ichsearch.report.grad_cam import grad_cam, has_maps
from ichsearch.report.heat import heated, windowed
from ichsearch.train.config import TrialConfig
from ichsearch.train.metrics import TOP_SLICES, FloatArray

SHOWN_PX: Final = 512
"""Side of a slice in a picture."""
FONT_PX: Final = 18
LINE_PX: Final = 26
NAMED_ABOVE: Final = 0.5
"""Labels with a higher probability are named in the picture, beside the one that is explained."""


class _Candidate(NamedTuple):
    """A slice that may be drawn: ordered by what is said of it."""

    probability: float
    number: int
    values: FloatArray
    hu: npt.NDArray[np.int16]  # (K, S, S)


@dataclass
class Overlays:
    """Draws, study by study, the slices that its probability is the mean of.

    Attributes:
        folder: where pictures go, `<number of the slice>.png`.
        predictor: of an ensemble the member with the largest weight is looked into.
        drawn: how many there are.
        maps_px: side of the maps that heat comes from.
    """

    folder: Path
    predictor: Predictor
    drawn: int = 0
    maps_px: int = 0
    _highest: list[_Candidate] = field(default_factory=list)

    @property
    def label(self) -> str:
        """What is explained: `any`, or the first label of a model without it."""
        labels = self.predictor.labels
        return ANY if ANY in labels else labels[0]

    def add(self, scored: Scored) -> None:
        """Keep of these slices and those before them in the study the highest."""
        of_label = scored.probabilities[:, self.predictor.labels.index(self.label)]
        for place in np.argsort(of_label)[-TOP_SLICES:].tolist():
            sources = scored.neighbours[place] if self.predictor.needs_neighbours else [place]
            number, values = scored.first + place, scored.probabilities[place]
            self._highest.append(_Candidate(float(of_label[place]), number, values, scored.series.hu[sources]))
        self._highest = sorted(self._highest, key=lambda item: item[:2])[-TOP_SLICES:]

    def end_study(self) -> None:
        """Draw what was kept."""
        if not self._highest:
            return
        for candidate, heat in zip(self._highest, self._heats(), strict=True):
            self._draw(candidate, heat).save(self.folder / f"{candidate.number}.png")
            self.drawn += 1
        self._highest = []

    def _heats(self) -> npt.NDArray[np.float32]:
        member, labels = self.predictor.pipeline.heaviest, self.predictor.labels
        images = torch.from_numpy(np.stack([item.hu for item in self._highest])).to(self.predictor.device)
        with torch.no_grad():
            inputs = member.inputs(images.float())
        heats, self.maps_px = grad_cam(member, inputs, labels.index(self.label))
        return heats.cpu().numpy()

    def _draw(self, candidate: _Candidate, heat: npt.NDArray[np.float32]) -> Image.Image:
        middle = candidate.hu[len(candidate.hu) // 2]
        grey = _sized(Image.fromarray(windowed(middle)))
        page = Image.new("RGB", (2 * SHOWN_PX, SHOWN_PX + 2 * LINE_PX))
        page.paste(Image.fromarray(grey).convert("RGB"), (0, 0))
        page.paste(Image.fromarray(heated(grey, heat)), (SHOWN_PX, 0))
        pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=FONT_PX)
        for line, text in enumerate(self._captions(candidate)):
            pen.text((8, SHOWN_PX + line * LINE_PX + 2), text, font=font, fill="white")
        return page

    def _captions(self, candidate: _Candidate) -> tuple[str, str]:
        labels = self.predictor.labels
        said = [
            f"{label} {value:.3f}"
            for label, value in zip(labels, candidate.values, strict=True)
            if label == self.label or value > NAMED_ABOVE
        ]
        return (
            f"slice {candidate.number} · {' · '.join(said)}",
            f"right: Grad-CAM for {self.label}, maps of {self.maps_px} by {self.maps_px} · not for clinical use",
        )


def _sized(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.BICUBIC))


def require_maps(predictor: Predictor) -> None:
    """Refuse overlays for a model that makes no maps of the image.

    Raises:
        ConfigError: with what to do.
    """
    config = looked_into(predictor)
    if not has_maps(config):
        raise ConfigError(
            f"overlays need a backbone that makes maps of the image, but {config.backbone} makes tokens; "
            "leave --overlays out, or name another --trial"
        )


def looked_into(predictor: Predictor) -> TrialConfig:
    """The configuration of the model that heat comes from."""
    return predictor.configs[predictor.weights.index(max(predictor.weights))]
