"""ichsearch: search backbones and training recipes for detecting intracranial haemorrhage on head CT."""

__version__ = "0.1.0"
