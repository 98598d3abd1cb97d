"""Why a file is no usable slice: the fixed list that every quarantine entry comes from.

In: a reason and, where that helps, an element's keyword. Out: `RejectedError`. No reason holds text of the file.
"""

from typing import Any, Final

REASONS: Final = {
    "unreadable": "the storage refused the file or the folder, or it is a link to nowhere, a pipe or a socket",
    "not_dicom": "no DICOM file",
    "damaged": "the header cannot be parsed",
    "not_ct_image": "another modality or object than a CT image",
    "not_axial": "a localizer, or the slice normal points away from the body's axis (a reformat)",
    "multi_frame": "more than one frame",
    "missing_tag": "a needed header element is missing",
    "bad_value": "a header element has a value that cannot be",
    "over_limit": "larger than a CT slice can be, or longer in decoding",
    "unsupported_syntax": "no decoder for its compression is installed; JPEG-LS and JPEG lossless: "
    "pip install 'ichsearch[codecs]'",
    "truncated_pixels": "fewer pixels than rows × columns",
    "decoder_crash": "the decoder gave up or crashed",
    "noise_or_constant": "every pixel has the same value or lies beyond all HU, or rows hold random values",
    "conflicting_duplicate": "another file has the same SOPInstanceUID and other pixels",
}


TRANSIENT: Final = ("unreadable", "decoder_crash", "over_limit:time", "over_limit:memory", "unsupported_syntax")
"""Reasons that another day, machine or installation may not have: such files are tried again."""


class RejectedError(Exception):
    """A file that is no usable slice; `reason` is a key of `REASONS`, some with a keyword behind a colon."""

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in REASONS
        self.reason = f"{reason}:{detail}" if detail else reason
        super().__init__(self.reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return RejectedError.from_text, (self.reason,)

    @classmethod
    def from_text(cls, text: str) -> "RejectedError":
        """The same error again from its `reason`."""
        reason, _, detail = text.partition(":")
        return cls(reason, detail)
