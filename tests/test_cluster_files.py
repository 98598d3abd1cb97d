"""The files of `cluster/` are what Ray, EC2 and docker take, and each check complains about a wrong one."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import moto
import pytest
import ray
import yaml
from cluster_checks import (
    CLUSTER,
    STOP_S,
    STOP_WAIT,
    blank_complaints,
    command_complaints,
    dockerfile_complaints,
    filled,
    ray_up_complaints,
    readme_commands,
    readme_complaints,
    shell_complaints,
)
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config
from ray.experimental.internal_kv import _internal_kv_get
from wrong_files import GONE, changed

from ichsearch.cli_signals import GRACE_S
from ichsearch.errors import ConfigError
from ichsearch.hard_end import WORDS_S
from ichsearch.search.resources import trial_request
from ichsearch.search.sections import Resources

RAY_UP = ("onprem", "aws", "gcp")
KUBERNETES = sorted((CLUSTER / "kuberay").glob("*.yaml"))
README = (CLUSTER / "README.md").read_text()
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()


@cache
def ray_up_file(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return content


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_takes_the_file(name: str) -> None:
    assert ray_up_complaints(ray_up_file(name)) == []


WORKER = "available_node_types/gpu_worker"
HEAD = "available_node_types/head"


@pytest.mark.parametrize(
    ("names", "path", "value", "complaint"),
    [
        ("onprem aws gcp", "cluster", "x", "Ray refuses it"),
        ("onprem aws gcp", "provider/availability_zones", "x", "Ray reads no ['availability_zones']"),
        ("onprem aws gcp", "head_start_ray_commands/1", "ray start --head", "started with RAY_AUTH_MODE=token"),
        ("onprem aws gcp", "head_start_ray_commands/1", "export RAY_AUTH_MODE=token; ray start", "RAY_USAGE_STATS"),
        ("onprem aws gcp", "head_start_ray_commands/1", "export RAY_AUTH_MODE=token; ray start", "RAY_JOB_STOP_WAIT"),
        ("onprem aws gcp", "head_start_ray_commands/1", "ray start --dashboard-host=0.0.0.0", "--dashboard-host"),
        ("onprem aws gcp", "head_start_ray_commands/1", "ray start --head --prot=6379", "start has no --prot"),
        ("onprem aws gcp", "head_start_ray_commands/1", "ray start --head --port=6380", "must agree on the port"),
        ("onprem aws gcp", "worker_start_ray_commands/1", "ray start --address=1.2.3.4:6379", "worker needs --address"),
        ("onprem aws gcp", "file_mounts/~/.ray/auth_token", GONE, "copied to every machine"),
        ("onprem aws gcp", "setup_commands/0", "chmod 644 ~/.ray/auth_token", "closed to others"),
        ("onprem aws gcp", "setup_commands/2", "pip install ichsearch", "must be installed with constraints.txt"),
        ("onprem aws gcp", "setup_commands/9", "pip install -U ray", "nothing fixes the versions"),
        ("onprem aws gcp", "setup_commands/9", "pip install ray==2.9.0", "ray must be"),
        ("onprem aws gcp", "setup_commands/9", "sh ~/ichsearch/other.sh", "other.sh is not copied"),
        ("onprem aws gcp", "file_mounts/~/x", "cluster/x.sh", "cluster/x.sh is no file"),
        ("onprem", "provider/head_ip", GONE, "Ray refuses it"),
        ("aws gcp", "provider/use_internal_ips", False, "use_internal_ips must be true"),
        ("aws gcp", "head_node_type", "heads", "Ray refuses it"),
        ("aws gcp", f"{WORKER}/worker_setup", ["x"], "Ray refuses it"),
        ("aws gcp", f"{WORKER}/node_config", GONE, "Ray refuses it"),
        ("aws gcp", f"{HEAD}/resources", {"CPU": 8}, "must offer no CPU"),
        ("aws gcp", "max_workers", 9, "must be the workers' sum, 4"),
        ("aws gcp", f"{WORKER}/min_workers", 1, "must shrink to its head"),
        ("aws gcp", "worker_start_ray_commands/1", "ray start", "nothing tells gpu_worker"),
        ("aws", f"{HEAD}/node_config/InstanceType", "g6.xlarge", "the head needs no GPU"),
        ("aws", f"{HEAD}/node_config/InstanceMarketOptions", {"MarketType": "spot"}, "head must not be a spot machine"),
        ("aws", f"{WORKER}/node_config/InstanceMarketOptions", GONE, "must be a spot machine"),
        ("aws", f"{WORKER}/node_config/InstanceType", "m7i.xlarge", "must have a GPU"),
        ("aws", f"{WORKER}/node_config/SubnetIds", GONE, "needs subnets"),
        ("aws", f"{WORKER}/node_config/SecurityGroupIds", GONE, "needs subnets and security groups"),
        ("aws", f"{WORKER}/node_config/SpotPrice", "1", "EC2 refuses gpu_worker"),
        ("aws", f"{WORKER}/node_config/InstanceMarketOptions/SpotOptions/MaxPrice", 1, "EC2 refuses gpu_worker"),
        ("aws", f"{HEAD}/node_config/BlockDeviceMappings/0/Ebs/VolumeSize", 100, "head's disk must hold the slices"),
        ("gcp", f"{HEAD}/node_config/disks/0/initializeParams/diskSizeGb", 100, "head's disk must hold the slices"),
        ("aws", f"{HEAD}/node_config/BlockDeviceMappings/0/Ebs/Encrypted", False, "disk must be encrypted"),
        ("aws", f"{HEAD}/node_config/MetadataOptions", GONE, "must need a token for its metadata"),
        ("gcp", f"{HEAD}/node_config/guestAccelerators", [], "the head needs no GPU"),
        ("gcp", f"{HEAD}/node_config/scheduling", {"preemptible": True}, "head must not be a spot machine"),
        ("gcp", f"{WORKER}/node_config/scheduling/provisioningModel", "STANDARD", "must be a spot machine"),
        ("gcp", f"{WORKER}/node_config/scheduling", [{"preemptible": True}], "gpu_worker.scheduling must be"),
        ("gcp", f"{WORKER}/node_config/machineType", "n2-standard-8", "must have a GPU"),
        ("gcp", f"{WORKER}/node_config/InstanceType", "x", "gpu_worker has no InstanceType"),
        ("gcp", f"{HEAD}/node_config/networkInterfaces/0/accessConfigs", [], "has no accessConfigs"),
        ("gcp", f"{WORKER}/node_config/networkInterfaces", GONE, "needs a network"),
        ("gcp", f"{WORKER}/resources", {"CPU": 8}, "must say how many GPUs"),
    ],
)  # fmt: skip
def test_a_wrong_ray_up_file_is_told(names: str, path: str, value: Any, complaint: str) -> None:
    for name in names.split():
        complaints = ray_up_complaints(changed_file(ray_up_file(name), path, value))
        assert any(complaint in found for found in complaints), (name, complaints)


def changed_file(config: Mapping[str, Any], path: str, value: Any) -> Any:
    """As `changed`; keys of file_mounts are paths themselves, and commands are appended when there are fewer."""
    top, _, rest = path.partition("/")
    if top == "file_mounts":
        mounts = {**config[top], rest: value}
        return {**config, top: {there: here for there, here in mounts.items() if here is not GONE}}
    if top == "setup_commands" and int(rest) >= len(config[top]):
        path = f"{top}/{len(config[top])}"
    return changed(config, path, value)


@pytest.mark.parametrize("name", RAY_UP)
def test_bash_takes_the_commands(name: str) -> None:
    assert shell_complaints(ray_up_file(name)) == []
    assert shell_complaints(changed(ray_up_file(name), "worker_start_ray_commands/1", "ray start && (sh x"))


@pytest.mark.slow  # EC2's simulator reads all instance types
def test_ray_starts_head_and_spot_workers_on_ec2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOME", str(tmp_path)), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with moto.mock_aws():
        ec2 = boto3.resource("ec2")
        network = ec2.create_vpc(CidrBlock="10.0.0.0/16")
        filled_in = {
            "subnet": network.create_subnet(CidrBlock="10.0.1.0/24").id,
            "sg": ec2.create_security_group(GroupName="ichsearch", Description="x", VpcId=network.id).id,
            "ami": boto3.client("ec2").describe_images()["Images"][0]["ImageId"],
        }
        text = json.dumps(filled(ray_up_file("aws")))
        for kind, identifier in filled_in.items():
            text = text.replace(f"{kind}-0123456789abcdef0", identifier)
        for profile in ("head", "worker"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
        config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(json.loads(text)))
        config = AWSNodeProvider.bootstrap_config(config)
        head, worker = (started(config, name) for name in ("head", "gpu_worker"))
    assert [config["available_node_types"][name]["resources"].get("GPU", 0) for name in ("head", "gpu_worker")] == [
        0,
        1,
    ]
    assert [node.instance_lifecycle for node in (head, worker)] == [None, "spot"]
    assert [node.public_ip_address for node in (head, worker)] == [None, None]
    assert [node.iam_instance_profile["Arn"].rpartition("/")[2] for node in (head, worker)] == ["head", "worker"]
    assert [[group["GroupId"] for group in node.security_groups] for node in (head, worker)] == [[filled_in["sg"]]] * 2


def started(config: Mapping[str, Any], node_type: str) -> Any:
    """An instance, started as Ray's autoscaler does."""
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-user-node-type": node_type}
    (instance,) = provider.create_node(config["available_node_types"][node_type]["node_config"], tags, 1).values()
    instance.reload()
    return instance


@pytest.mark.parametrize(
    "path", [*(CLUSTER / f"{name}.yaml" for name in RAY_UP), *KUBERNETES], ids=lambda path: path.stem
)
def test_all_that_must_be_filled_in_stands_at_the_top_and_is_used(path: Path) -> None:
    text = path.read_text()
    assert blank_complaints(text) == []
    name = next(word for word in text.split() if word.startswith("&"))[1:]
    for wrong, complaint in (
        (f"{text}\nx: <name: x>\n", "not at the top: <name: x>"),
        (
            text.replace(f"*{name}\n", "x\n").replace(f"*{name} ", "x ").replace(f"*{name}}}", "x}"),
            f"nothing uses {name}",
        ),
        (text.replace("FILL IN", "Fill in"), "it must say"),
    ):
        assert any(complaint in found for found in blank_complaints(wrong)), complaint


def test_the_image_is_small_unprivileged_and_of_this_version() -> None:
    assert dockerfile_complaints(DOCKERFILE) == []
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert [line for line in ignored if not line.startswith("#")] == ["*", "!constraints.txt", "!dist/ichsearch-*.whl"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("python:3.12-slim-bookworm", "python:latest", "slim Python of a fixed version"),
        ("USER 1000:1000\n", "", "not root's"),
        ("USER 1000:1000", "USER ichsearch", "not root's"),
        ("WORKDIR", "USER 0:0\nWORKDIR", "not root's"),
        ("COPY constraints.txt", "ADD https://example.org/x /tmp/\nCOPY constraints.txt", "ADD fetches"),
        ("COPY constraints.txt", "COPY . /src\nCOPY constraints.txt", "constraints.txt alone"),
        ("-c /tmp/ichsearch/constraints.txt", "", "must be installed with constraints.txt"),
        ("ichsearch-0.1.0", "ichsearch-0.0.9", "must be installed with constraints.txt"),
        ("ARG PIP", "ARG AWS_SECRET_ACCESS_KEY\nARG PIP", "a secret has no place"),
        ("RAY_USAGE_STATS_ENABLED=0", "X=0", "usage statistics must be off"),
        ("RAY_AUTH_MODE=token", "X=0", "ask for the token"),
    ],
)
def test_a_wrong_image_is_told(old: str, new: str, complaint: str) -> None:
    assert any(complaint in found for found in dockerfile_complaints(DOCKERFILE.replace(old, new)))


def test_the_commands_and_files_of_the_readme_exist() -> None:
    assert readme_complaints(README) == []
    assert len(readme_commands(README)) > 20
    named = {path.relative_to(CLUSTER).as_posix() for path in CLUSTER.rglob("*") if path.is_file()}
    assert not [name for name in named - {"README.md", "Dockerfile.dockerignore"} if f"[{name}]({name})" not in README]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ray up --yess cluster/aws.yaml", "up has no --yess"),
        ("ray dash cluster/aws.yaml", "no verb dash"),
        ("ray up -y cluster/azure.yaml", "there is no cluster/azure.yaml"),
        ("ray job submit --nowait -- ichsearch run", "submit has no --nowait"),
        ("ray job submit --no-wait -- ichsearch run --spaces x", "run has no --spaces"),
        ("export X=1 && ichsearch runs", "no verb runs"),
        ("RAY_AUTH_MODE=token ray stat", "no verb stat"),
    ],
)
def test_a_wrong_command_is_told(line: str, complaint: str) -> None:
    assert command_complaints(line) == [complaint]


def test_a_job_that_is_stopped_has_the_time_to_end() -> None:
    assert STOP_S > GRACE_S + WORDS_S
    assert f"the head must be started with {STOP_WAIT}" in readme_complaints(README.replace(f"{STOP_WAIT} ", ""))


def test_a_file_that_the_readme_only_names_is_told() -> None:
    assert "there is no cloud.yaml" in readme_complaints(README + "\n`cloud.yaml` and [x](aws.yaml)\n")


class Metadata(http.server.BaseHTTPRequestHandler):
    """The clouds' metadata service: no notice at first, one when it is asked for the second time."""

    asked: list[str]

    def do_PUT(self) -> None:  # AWS: a session's token
        self._answer(200, b"session")

    def do_GET(self) -> None:
        self.asked.append(f"{self.path} {self.headers['Metadata-Flavor'] or self.headers['X-aws-ec2-metadata-token']}")
        noticed = len(self.asked) > 1
        if self.path.startswith("/computeMetadata"):
            self._answer(200, b"TRUE" if noticed else b"FALSE")
        else:
            self._answer(200 if noticed else 404, b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def metadata() -> Iterator[tuple[str, list[str]]]:
    Metadata.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", Metadata.asked
        server.shutdown()


@pytest.mark.parametrize(
    ("cloud", "asked", "left_s"),
    [
        ("aws", "/latest/meta-data/spot/instance-action session", 100),
        ("gcp", "/computeMetadata/v1/instance/preempted Google", 25),
    ],
)
def test_a_spot_notice_drains_the_node(
    cloud: str, asked: str, left_s: int, metadata: tuple[str, list[str]], tmp_path: Path
) -> None:
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    ray.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "METADATA_URL": metadata[0],
        "LOOK_EVERY_S": "0.1",
    }
    command = ["sh", str(CLUSTER / "spot_notice.sh"), cloud]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert metadata[1] == [asked, asked]
    drain = ["ray", *done.stdout.splitlines()]
    assert drain[1] == "drain-node" and drain[-1] == str(left_s)
    assert command_complaints(" ".join(drain)) == []


def test_a_spot_notice_is_of_a_cloud_that_is_known() -> None:
    done = subprocess.run(
        ["sh", str(CLUSTER / "spot_notice.sh"), "azure"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (2, "the cloud must be aws or gcp, but is azure\n")


def test_a_search_that_finds_the_head_alone_is_refused() -> None:
    (head,) = {json.dumps(ray_up_file(name)["available_node_types"]["head"]["resources"]) for name in ("aws", "gcp")}
    offered = {name: amount for name, amount in json.loads(head).items() if amount}  # Ray leaves zeros out
    with pytest.raises(ConfigError, match="none of this one offers a CPU; start a worker"):
        trial_request(Resources(), [{**offered, "memory": 1e9, "node:__internal_head__": 1.0}])


def asked_for() -> Any:
    """What the autoscaler is asked to keep ready."""
    return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or b"null")


@pytest.mark.slow  # starts two drivers on a cluster
def test_gpus_are_asked_for_and_let_go(ray_local: Path) -> None:  # noqa: ARG001 - the cluster that is asked
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, str(CLUSTER / "gpus.py")]
    with subprocess.Popen([*command, "2"], env=environment, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout and waiting.stdout.readline() == "0 of 2 GPUs\n"
        assert asked_for() == [{"GPU": 1}] * 2
        done = subprocess.run([*command, "0"], env=environment, capture_output=True, text=True, check=True, timeout=120)
        waiting.terminate()
    assert done.stdout == "0 of 0 GPUs\n"
    assert asked_for() == []
