"""What a trial takes of a node, and how many fit."""

import pytest

from ichsearch.errors import ConfigError
from ichsearch.search.resources import trial_request
from ichsearch.search.space import Resources

LAPTOP = {"CPU": 2.0}
SERVER = {"CPU": 64.0}
GPU_BOX = {"CPU": 32.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus"),
    [([LAPTOP], 1, 0), ([SERVER], 16, 0), ([GPU_BOX], 8, 1), ([SERVER, GPU_BOX], 8, 1)],
)
def test_auto_follows_the_cluster(nodes: list[dict[str, float]], cpus: float, gpus: float) -> None:
    assert trial_request(Resources(), nodes) == {"CPU": cpus, "GPU": gpus}


def test_what_no_node_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="largest has 2 and 0"):
        trial_request(Resources(cpus_per_trial=3), [LAPTOP])
    with pytest.raises(ConfigError, match="1 GPUs"):
        trial_request(Resources(gpus_per_trial=1), [LAPTOP])


def test_a_share_of_a_gpu_takes_its_share_of_the_cores() -> None:
    assert trial_request(Resources(gpus_per_trial=0.5), [GPU_BOX]) == {"CPU": 4.0, "GPU": 0.5}
