"""The files of `cluster/` are what Ray, EC2, KubeRay and docker take, and each check complains about a wrong one."""

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_checks import (
    CLUSTER,
    blank_complaints,
    command_complaints,
    dockerfile_complaints,
    ray_up_complaints,
    readme_commands,
    readme_complaints,
)
from kubernetes_checks import kubernetes_complaints

from ichsearch.cli import app

RAY_UP = ("onprem", "aws", "gcp")
KUBERNETES = sorted((CLUSTER / "kuberay").glob("*.yaml"))
README = (CLUSTER / "README.md").read_text()
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
GONE = object()


@cache
def ray_up_file(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return content


@cache
def parsed_manifests() -> str:
    return json.dumps([document for path in KUBERNETES for document in yaml.safe_load_all(path.read_text())])


def manifests() -> list[dict[str, Any]]:
    return list(json.loads(parsed_manifests()))


def changed(document: Any, path: str, value: Any) -> Any:
    """A copy in which the value at a path of keys and numbers is another one, or gone."""
    copy = json.loads(json.dumps(document))  # no part is shared, as the anchors of a file are
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    place = copy
    for key in parents:
        place = place[key]
    if value is GONE:
        del place[last]
    elif isinstance(place, list) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return copy


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


def test_the_manifests_are_what_kubernetes_and_kuberay_take() -> None:
    assert kubernetes_complaints(manifests()) == []


OPERATOR, POLICY = "NetworkPolicy:ichsearch-operator", "NetworkPolicy:ichsearch"
RAY, JOB, CLAIM = "RayCluster:ichsearch", "RayJob:ichsearch", "PersistentVolumeClaim:ichsearch"
HEAD_POD, POD = "spec/headGroupSpec/template/spec", "spec/workerGroupSpecs/0/template/spec"


@pytest.mark.parametrize(
    ("kind", "path", "value", "complaint"),
    [
        (RAY, "apiVersion", "ray.io/v1alpha1", "RayCluster is of ray.io/v1"),
        (RAY, "kind", "RayService", "the folder must hold"),
        (POLICY, "apiVersion", "v1", "NetworkPolicy is of networking.k8s.io/v1"),
        (CLAIM, "metadata/name", "other", "must be ichsearch's by its name"),
        (RAY, "spec/rayVersion", "2.9.0", "rayVersion must be"),
        (RAY, "spec/authOptions", GONE, "token must be asked for"),
        (RAY, "spec/authOptions/mode", "disabled", "token must be asked for"),
        (RAY, "spec/enableInTreeAutoscaling", False, "autoscaler must run"),
        (RAY, "spec/autoscaling", True, "KubeRay knows no ['autoscaling']"),
        (RAY, "spec/autoscalerOptions/minReplicas", 1, "KubeRay knows no ['minReplicas']"),
        (RAY, "spec/autoscalerOptions/env", [], "autoscaler must not report usage"),
        (RAY, "spec/autoscalerOptions/securityContext", {}, "autoscaler must not gain privileges"),
        (RAY, "spec/headGroupSpec/serviceType", "LoadBalancer", "no public address"),
        (RAY, "spec/headGroupSpec/replicas", 1, "KubeRay knows no ['replicas']"),
        (RAY, "spec/headGroupSpec/rayStartParams", {}, "Ray would run trials on the head"),
        (RAY, f"{HEAD_POD}/containers/0/ports/1/containerPort", 8266, "head's ports must be"),
        (RAY, f"{HEAD_POD}/containers/0/name", "head", "KubeRay goes by the first container's name"),
        (RAY, f"{HEAD_POD}/containers/0/resources/limits/nvidia.com~gpu", 1, "a worker needs a GPU, the others none"),
        (RAY, "spec/workerGroupSpecs/0/replicas", 9, "replicas must lie between"),
        (RAY, "spec/workerGroupSpecs/0/minWorkers", 9, "KubeRay knows no ['minWorkers']"),
        (RAY, "spec/workerGroupSpecs/0/maxReplicas", "4", "Ray's autoscaler refuses it"),
        (RAY, f"{POD}/containers/0/resources", {"limits": {"cpu": "7"}}, "one GPU a worker"),
        (RAY, f"{POD}/containers/0/resources/requests/nvidia.com~gpu", GONE, "requested as they are limited"),
        (RAY, f"{POD}/containers/0/resources/limits/memory", GONE, "limits for CPU and memory"),
        (RAY, f"{POD}/containers/0/image", "x/ichsearch:latest", "one image of version"),
        (RAY, f"{POD}/containers/0/images", "x", "no other keys"),
        (RAY, f"{POD}/containers/0/volumeMounts/0/name", "share", "must be a volume"),
        (RAY, f"{POD}/containers/0/env/0/value", "1", "must not report usage"),
        (RAY, f"{POD}/containers/0/env/2/value", "/shared/cache", "node's own disk"),
        (RAY, f"{POD}/containers/0/env/3", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}, "no secret"),
        (RAY, f"{POD}/containers/0/securityContext", GONE, "must not gain privileges"),
        (RAY, f"{POD}/securityContext/runAsUser", 0, "must not run as root"),
        (RAY, f"{HEAD_POD}/securityContext/runAsNonRoot", False, "must not run as root"),
        (RAY, f"{HEAD_POD}/securityContext/seccompProfile", GONE, "system calls filtered"),
        (RAY, f"{HEAD_POD}/hostNetwork", True, "must have no ['hostNetwork']"),
        (RAY, f"{HEAD_POD}/volumes/0/persistentVolumeClaim/claimName", "other", "claims a disk that is not there"),
        (RAY, f"{POD}/terminationGracePeriodSeconds", 60, "longer than its drain"),
        (RAY, f"{POD}/containers/0/env/1", {"name": "X", "value": ""}, "longer than its drain"),
        (RAY, "spec/workerGroupSpecs/0/template/metadata/labels", {}, "the policy must select every pod"),
        (JOB, "spec/entrypoint", "ichsearch run --spaces x --out /shared/x", "run has no --spaces"),
        (JOB, "spec/entrypoint", "ichsearch run --space x --out /tmp/x", "folder outlives the pods"),
        (JOB, "spec/shutdownAfterJobFinishes", False, "must go with it"),
        (JOB, "spec/restart", 1, "KubeRay knows no ['restart']"),
        (JOB, "spec/rayClusterSpec/rayVersion", "2.9.0", "the one of raycluster.yaml"),
        (JOB, "spec/rayClusterSpec/suspended", True, "KubeRay knows no ['suspended']"),
        (JOB, "spec/rayClusterSpec/workerGroupSpecs/0/minReplicas", 0, "there before its search begins"),
        (JOB, "spec/submitterPodTemplate/metadata/labels", {}, "the policy must select every pod"),
        (CLAIM, "spec/accessModes", ["ReadWriteOnce"], "write to the disk"),
        (CLAIM, "spec/storageClassName", GONE, "a class and a size"),
        (POLICY, "spec/podSelector", {}, "the policy must select every pod"),
        (POLICY, "spec/ingress/0/from/0", {"podSelector": {}}, "reached by each other alone"),
        (POLICY, "spec/ingress/1", {}, "reached by each other alone"),
        (POLICY, "spec/policyTypes", ["Egress"], "about who comes in"),
        (OPERATOR, "spec/ingress/0/ports", GONE, "the dashboard and nothing else"),
        (OPERATOR, "spec/ingress/0/from/0/podSelector", GONE, "by namespace and label together"),
        (OPERATOR, "spec/podSelector/matchLabels/ray.io~node-type", "worker", "reach the head alone"),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_told(kind: str, path: str, value: Any, complaint: str) -> None:
    documents = manifests()
    number = [f"{document['kind']}:{document['metadata']['name']}" for document in documents].index(kind)
    documents[number] = changed_manifest(documents[number], path, value)
    complaints = kubernetes_complaints(documents)
    assert any(complaint in found for found in complaints), complaints


def changed_manifest(document: Any, path: str, value: Any) -> Any:
    """As `changed`; a slash within a key is written ~."""
    marked = json.loads(
        json.dumps(document).replace("nvidia.com/gpu", "nvidia.com~gpu").replace("ray.io/n", "ray.io~n")
    )
    text = json.dumps(changed(marked, path, value))
    return json.loads(text.replace("nvidia.com~gpu", "nvidia.com/gpu").replace("ray.io~n", "ray.io/n"))


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
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert readme_complaints(README) == ([] if "doctor" in verbs else ["no verb doctor"])
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


def test_the_checks_leave_the_files_alone() -> None:
    before = manifests()
    after = deepcopy(before)
    kubernetes_complaints(after)
    assert after == before
