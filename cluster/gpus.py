"""Ask a cluster's autoscaler for GPUs: `python gpus.py 4` waits until they are there, `python gpus.py 0` lets them go.

A search proposes a trial only when a GPU is free for it, so that it never asks for machines itself. What is asked for
here holds until the next such request: machines that a cloud takes are replaced.
"""

import sys
import time
from typing import Final

import ray
from ray.autoscaler.sdk import request_resources

LOOK_EVERY_S: Final = 5.0


def main() -> None:
    """Ask, then wait; a job that is stopped while it waits leaves the request in force."""
    wanted = int(sys.argv[1])
    ray.init(logging_level="ERROR")
    request_resources(bundles=[{"GPU": 1}] * wanted)
    seen = -1
    while seen < wanted:
        there = int(ray.cluster_resources().get("GPU", 0))
        if there != seen:
            sys.stdout.write(f"{there} of {wanted} GPUs\n")
            sys.stdout.flush()
        seen = there
        time.sleep(LOOK_EVERY_S if seen < wanted else 0)


if __name__ == "__main__":
    main()
