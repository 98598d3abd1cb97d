"""How this process keeps memory between images.

In: nothing. Out: an allocator that reuses what it has.
"""

import ctypes
import sys
from functools import cache
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
KEPT_BYTES: Final = 256 * 2**20


@cache
def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MiB of freed memory (mallopt(3)); elsewhere nothing happens.

    An image is larger than what glibc keeps by default: each array would be fresh pages that the kernel must clear,
    which takes as long as the arithmetic on it.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
