"""The manifests of `cluster/kuberay/` are what Kubernetes, KubeRay and Ray's autoscaler take; wrong ones are told."""

import json
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import yaml
from cluster_checks import CLUSTER
from kubernetes_checks import kubernetes_complaints
from wrong_files import GONE, changed

KUBERNETES = sorted((CLUSTER / "kuberay").glob("*.yaml"))


@cache
def parsed_manifests() -> str:
    return json.dumps([document for path in KUBERNETES for document in yaml.safe_load_all(path.read_text())])


def manifests() -> list[dict[str, Any]]:
    return list(json.loads(parsed_manifests()))


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
        (RAY, f"{HEAD_POD}/containers/0/env/1/value", "3", "must have the time to end"),
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


def test_the_checks_leave_the_files_alone() -> None:
    before = manifests()
    after = deepcopy(before)
    kubernetes_complaints(after)
    assert after == before
