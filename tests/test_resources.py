"""What a trial takes of a node, how many fit, and a token that nobody else can read."""

from pathlib import Path

import pytest

from ichsearch.errors import ConfigError
from ichsearch.search.resources import trial_request
from ichsearch.search.sections import Resources
from ichsearch.shards import ray_session

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


def test_the_clusters_token_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    ray_session._protect_token()
    assert token.stat().st_mode & 0o777 == 0o600
