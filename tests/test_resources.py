"""What a trial takes of a node, how many fit, shares of a GPU, and a token that nobody else can read."""

import pytest

from ichsearch.errors import ConfigError
from ichsearch.search.resources import (
    Node,
    Request,
    Requests,
    gpu_share,
    has_room,
    of_one_process,
    processes_of,
    trial_request,
    trial_requests,
)
from ichsearch.search.sections import Resources

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


def test_a_trial_of_several_gpus_takes_them_all_of_one_node() -> None:
    request = trial_request(Resources(gpus_per_trial=2), [SERVER, GPU_BOX])
    assert request == {"CPU": 16.0, "GPU": 2.0}
    assert processes_of(request) == 2
    assert of_one_process(request) == {"CPU": 8.0, "GPU": 1.0}
    with pytest.raises(ConfigError, match=r"a node must have room for .* 2 GPUs, but the largest has 8 and 1; lower"):
        trial_request(Resources(gpus_per_trial=2), [{"CPU": 8.0, "GPU": 1.0}] * 2)


@pytest.mark.parametrize("request_", [{"CPU": 4.0, "GPU": 0.0}, {"CPU": 2.0, "GPU": 0.5}, {"CPU": 8.0, "GPU": 1.0}])
def test_a_trial_of_one_gpu_or_less_is_one_process(request_: Request) -> None:
    assert processes_of(request_) == 1
    assert of_one_process(request_) == request_


NEEDS_MB = {"resnet18": 3_000.0, "resnet50": 12_000.0, "densenet121": 14_000.0, "vit": 30_000.0, "broken": float("inf")}
CARD_MB = 40_000.0


def gpus(requests: Requests) -> dict[str, float]:
    return {name: request["GPU"] for name, request in requests.by_backbone.items()}


def test_a_backbone_gets_the_smallest_share_whose_memory_holds_it() -> None:
    requests = trial_requests(Resources(), [GPU_BOX], NEEDS_MB, CARD_MB)
    assert gpus(requests) == {"resnet18": 0.25, "resnet50": 0.5, "densenet121": 0.5, "vit": 1.0, "broken": 1.0}
    assert requests.of("resnet18") == {"CPU": 2.0, "GPU": 0.25}
    assert requests.of("one that the LR finder did not see") == requests.whole == {"CPU": 8.0, "GPU": 1.0}
    assert requests.least == requests.of("resnet18")


def test_a_run_has_at_most_three_classes() -> None:
    needs = {f"backbone{number}": 1.3**number for number in range(60)}
    requests = trial_requests(Resources(), [GPU_BOX, {"CPU": 64.0, "GPU": 8.0}], needs, CARD_MB)
    assert len({tuple(request.items()) for request in [requests.whole, *requests.by_backbone.values()]}) == 3


@pytest.mark.parametrize(
    ("resources", "nodes", "card_mb"),
    [
        (Resources(), [SERVER], None),
        (Resources(), [GPU_BOX], None),
        (Resources(gpus_per_trial=0.5), [GPU_BOX], CARD_MB),
        (Resources(), [{"CPU": 4.0, "GPU": 4.0}], CARD_MB),
        (Resources(cpus_per_trial=8), [GPU_BOX], CARD_MB),
    ],
    ids=["no GPU", "memory unknown", "said by the space", "a core a GPU", "all cores are asked for"],
)
def test_there_is_one_class_where_shares_help_nobody(
    resources: Resources, nodes: list[Node], card_mb: float | None
) -> None:
    requests = trial_requests(resources, nodes, NEEDS_MB, card_mb)
    assert {request["GPU"] for request in requests.by_backbone.values()} <= {requests.whole["GPU"]}


def test_cores_bound_the_share_from_below() -> None:
    assert gpu_share(1.0, CARD_MB, least=0.0) == 0.25
    assert gpu_share(1.0, CARD_MB, least=1 / 3) == 0.5


HALF, WHOLE = {"CPU": 4.0, "GPU": 0.5}, {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "running", "asked", "room"),
    [
        ([LAPTOP], [], {"CPU": 1.0, "GPU": 0.0}, True),
        ([LAPTOP], [{"CPU": 1.0, "GPU": 0.0}] * 2, {"CPU": 1.0, "GPU": 0.0}, False),
        ([LAPTOP, LAPTOP], [{"CPU": 1.0, "GPU": 0.0}] * 3, {"CPU": 1.0, "GPU": 0.0}, True),
        ([GPU_BOX], [HALF] * 7, HALF, True),
        ([GPU_BOX], [HALF] * 7, WHOLE, False),
        ([GPU_BOX], [WHOLE, HALF] * 2, HALF, True),
        ([GPU_BOX], [WHOLE, WHOLE, HALF, WHOLE], HALF, True),
        ([GPU_BOX], [WHOLE] * 5, HALF, False),
        ([{"CPU": 16.0, "GPU": 1.0}], [{"CPU": 1.0, "GPU": 0.1}] * 9, {"CPU": 1.0, "GPU": 0.1}, True),
        ([{"CPU": 16.0, "GPU": 1.0}], [{"CPU": 1.0, "GPU": 0.1}] * 10, {"CPU": 1.0, "GPU": 0.1}, False),
        ([], [], HALF, False),
    ],
)
def test_room_for_one_more(
    nodes: list[Node], running: list[dict[str, float]], asked: dict[str, float], room: bool
) -> None:
    assert has_room(nodes, running, asked) == room
