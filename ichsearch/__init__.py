"""ichsearch: search backbones and training recipes for detecting intracranial haemorrhage on head CT."""

from typing import Final

__version__: Final = "0.1.0"
