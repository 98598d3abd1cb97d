"""What is wrong with the Kubernetes manifests of `cluster/kuberay/`: no complaint about good ones.

In: the parsed documents of all files. Out: sentences; tests hold them against wrong variants too.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from cluster_checks import PINS, STOP_S, STOP_VARIABLE, command_complaints, filled
from jsonschema import ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from ichsearch import __version__

Document = Mapping[str, Any]

API_VERSIONS: Final = {
    "PersistentVolumeClaim": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
}
KUBERAY_KEYS: Final = {
    "RayCluster": "upgradeStrategy authOptions suspend managedBy autoscalerOptions headServiceAnnotations "
    "enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec rayVersion workerGroupSpecs",
    "authOptions": "enableK8sTokenAuth secretName mode",
    "autoscalerOptions": "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env "
    "envFrom volumeMounts command args",
    "headGroupSpec": "template headService enableIngress ingressOptions resources labels rayStartParams serviceType",
    "worker group": "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds priority resources labels "
    "rayStartParams template scaleStrategy numOfHosts",
    "RayJob": "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector "
    "submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources "
    "entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished preRunningDeadlineSeconds shutdownAfterJobFinishes "
    "suspend",
}
"""Of KubeRay 1.7's CRD reference, what 1.6 has as well."""
POD_KEYS: Final = (
    "affinity automountServiceAccountToken containers imagePullSecrets initContainers nodeSelector priorityClassName "
    "restartPolicy runtimeClassName securityContext serviceAccountName terminationGracePeriodSeconds tolerations "
    "topologySpreadConstraints volumes"
)
CONTAINER_KEYS: Final = (
    "args command env envFrom image imagePullPolicy lifecycle name ports resources securityContext volumeMounts"
)
PORTS: Final = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
OWN_REPLICAS: Final = ("replicas", "minReplicas")
"""In which a job's cluster may differ from the one that stays."""


def kubernetes_complaints(documents: Iterable[Document]) -> list[str]:
    """About all documents of the folder together."""
    documents = [filled(document) for document in documents]
    kinds = [document.get("kind") for document in documents]
    if sorted(map(str, kinds)) != ["NetworkPolicy", "NetworkPolicy", "PersistentVolumeClaim", "RayCluster", "RayJob"]:
        return [f"the folder must hold a claim, two policies, a cluster and a job, but holds {kinds}"]
    claim, cluster, job = (_only(kind, documents) for kind in ("PersistentVolumeClaim", "RayCluster", "RayJob"))
    policies = [document for document in documents if document["kind"] == "NetworkPolicy"]
    spec = job["spec"].get("rayClusterSpec", {})
    checks = [
        _kinds(documents),
        _cluster(cluster["spec"], "cluster"),
        _job(job["spec"], cluster["spec"]),
        (complaint for pod in _pods(cluster["spec"], job["spec"]) for complaint in _pod(*pod, claim)),
        _images(cluster, job),
        _claim(claim["spec"]),
        _policies(policies, [template for _, template in _pods(cluster["spec"], job["spec"])]),
        _keys(spec, "RayCluster", "job's cluster"),
    ]
    return [complaint for check in checks for complaint in check]


def _only(kind: str, documents: Iterable[Document]) -> Document:
    return next(document for document in documents if document["kind"] == kind)


def _kinds(documents: Iterable[Document]) -> Iterator[str]:
    for document in documents:
        if document.get("apiVersion") != API_VERSIONS[document["kind"]]:
            yield f"{document['kind']} is of {API_VERSIONS[document['kind']]}, not {document.get('apiVersion')}"
        if not str(document.get("metadata", {}).get("name", "")).startswith("ichsearch"):
            yield f"the {document['kind']} must be ichsearch's by its name"


def _keys(value: Mapping[str, Any], kind: str, where: str) -> Iterator[str]:
    if unknown := value.keys() - set(KUBERAY_KEYS[kind].split()):
        yield f"KubeRay knows no {sorted(unknown)} of a {kind} ({where})"


def _cluster(spec: Mapping[str, Any], where: str) -> Iterator[str]:
    yield from _keys(spec, "RayCluster", where)
    head, scaler = spec["headGroupSpec"], spec.get("autoscalerOptions", {})
    yield from _keys(head, "headGroupSpec", where)
    yield from _keys(scaler, "autoscalerOptions", where)
    container = head["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    rules = {
        f"rayVersion must be {PINS['ray']}": spec.get("rayVersion") == PINS["ray"],
        "the token must be asked for": spec.get("authOptions") == {"mode": "token"},
        "the autoscaler must run": spec.get("enableInTreeAutoscaling") is True and scaler.get("version") == "v2",
        "the autoscaler must not report usage": _env(scaler).get("RAY_USAGE_STATS_ENABLED") == "0",
        "the autoscaler must not gain privileges": _is_bare(scaler),
        "the head must have no public address": head.get("serviceType") == "ClusterIP" and "enableIngress" not in head,
        "the head must offer no CPU to trials": head.get("rayStartParams", {}).get("num-cpus") == "0",
        f"the head's ports must be {PORTS}": ports == PORTS,
        "a job that is stopped must have the time to end": _env(container).get(STOP_VARIABLE) == str(STOP_S),
    }  # fmt: skip
    yield from (f"{complaint} ({where})" for complaint, holds in rules.items() if not holds)
    if refusals := list(_as_ray_sees_it(spec, where)):
        yield from refusals
        return
    for group in spec["workerGroupSpecs"]:
        yield from _keys(group, "worker group", where)
        if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0):
            yield f"replicas must lie between minReplicas and maxReplicas ({where})"


def _as_ray_sees_it(spec: Mapping[str, Any], where: str) -> Iterator[str]:
    """Ray's autoscaler reads the resource itself, and must find no CPU on the head and a GPU on each worker."""
    try:
        seen = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "x"}, "spec": spec})
    except (ValidationError, KeyError, TypeError, ValueError, AssertionError) as error:
        yield f"Ray's autoscaler refuses it: {error!r} ({where})"
        return
    types = seen["available_node_types"]
    head = types.pop(seen["head_node_type"])["resources"]
    if head.get("CPU") != 0 or head.get("GPU"):
        yield f"Ray would run trials on the head, it has {head} ({where})"
    if not types or any(node["resources"].get("GPU") != 1 for node in types.values()):
        yield f"Ray must find one GPU a worker ({where})"


def _job(spec: Mapping[str, Any], cluster: Mapping[str, Any]) -> Iterator[str]:
    yield from _keys(spec, "RayJob", "job")
    yield from command_complaints(spec.get("entrypoint", ""))
    if not spec.get("entrypoint", "").startswith("ichsearch run ") or " --out /shared/" not in spec["entrypoint"]:
        yield "the job must run a search whose folder outlives the pods"
    if spec.get("shutdownAfterJobFinishes") is not True:
        yield "the job's cluster must go with it"
    if _without_replicas(spec["rayClusterSpec"]) != _without_replicas(cluster):
        yield "the job's cluster must be the one of raycluster.yaml but for its replicas"
    if any(group["minReplicas"] < 1 for group in spec["rayClusterSpec"]["workerGroupSpecs"]):
        yield "a job's workers must be there before its search begins"


def _without_replicas(spec: Mapping[str, Any]) -> dict[str, Any]:
    groups = [{key: group[key] for key in group if key not in OWN_REPLICAS} for group in spec["workerGroupSpecs"]]
    return {**spec, "workerGroupSpecs": groups}


def _pods(cluster: Mapping[str, Any], job: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        ("head", cluster["headGroupSpec"]["template"]),
        *((group["groupName"], group["template"]) for group in cluster["workerGroupSpecs"]),
        ("submitter", job.get("submitterPodTemplate", {"spec": {"containers": []}})),
    ]


def _pod(name: str, template: Mapping[str, Any], claim: Document) -> Iterator[str]:
    pod = template["spec"]
    security = pod.get("securityContext", {})
    if unknown := pod.keys() - set(POD_KEYS.split()):
        yield f"the {name} pod must have no {sorted(unknown)}"
    if security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) < 1:
        yield f"the {name} pod must not run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"the {name} pod must have its system calls filtered"
    for volume in pod.get("volumes", []):
        if (
            volume.get("persistentVolumeClaim", {"claimName": claim["metadata"]["name"]})["claimName"]
            != claim["metadata"]["name"]
        ):
            yield f"the {name} pod claims a disk that is not there"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    names = [container["name"] for container in pod["containers"]]
    if names != [{"head": "ray-head", "submitter": "ray-job-submitter"}.get(name, "ray-worker")]:
        yield f"KubeRay goes by the first container's name, but the {name} pod has {names}"
    for container in pod["containers"]:
        yield from (f"{complaint} ({name})" for complaint in _container(container, volumes))
    drain_s = float(
        _env(pod["containers"][0]).get(
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 0 if name in ("head", "submitter") else 1e9
        )
    )
    if pod.get("terminationGracePeriodSeconds", 30) <= drain_s:
        yield f"the {name} pod must live longer than its drain"


def _container(container: Mapping[str, Any], volumes: set[str]) -> Iterator[str]:
    limits, requests = (container.get("resources", {}).get(kind, {}) for kind in ("limits", "requests"))
    is_worker = container["name"] == "ray-worker"
    rules = {
        "it must have no other keys": container.keys() <= set(CONTAINER_KEYS.split()),
        "it must have limits for CPU and memory": {"cpu", "memory"} <= limits.keys(),
        "a worker needs a GPU, the others none": (limits.get("nvidia.com/gpu") == 1) == is_worker,
        "GPUs must be requested as they are limited": limits.get("nvidia.com/gpu") == requests.get("nvidia.com/gpu"),
        "it must not report usage": _env(container).get("RAY_USAGE_STATS_ENABLED") == "0",
        "it must not gain privileges": _is_bare(container),
        "what it mounts must be a volume": all(mount["name"] in volumes for mount in container.get("volumeMounts", [])),
        "no secret may stand here": not any(
            re.search("TOKEN|SECRET|PASSWORD|KEY", variable["name"]) and "value" in variable
            for variable in container.get("env", [])
        ),
        "slices are decoded to the node's own disk": container["name"] == "ray-job-submitter"
        or _env(container).get("ICHSEARCH_CACHE") == "/cache",
    }  # fmt: skip
    yield from (complaint for complaint, holds in rules.items() if not holds)


def _env(container: Mapping[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}


def _is_bare(container: Mapping[str, Any]) -> bool:
    return container.get("securityContext") == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _images(cluster: Document, job: Document) -> Iterator[str]:
    pods = [*_pods(cluster["spec"], job["spec"]), *_pods(job["spec"]["rayClusterSpec"], job["spec"])]
    images = {container["image"] for _, template in pods for container in template["spec"]["containers"]}
    if len(images) != 1 or not next(iter(images)).endswith(f"/ichsearch:{__version__}"):
        yield f"all pods must run one image of version {__version__}, but run {sorted(images)}"


def _claim(spec: Mapping[str, Any]) -> Iterator[str]:
    if spec.get("accessModes") != ["ReadWriteMany"]:
        yield "all pods must be able to write to the disk"
    if not spec.get("storageClassName") or not spec.get("resources", {}).get("requests", {}).get("storage"):
        yield "the claim needs a class and a size"


def _policies(policies: list[Document], templates: list[Mapping[str, Any]]) -> Iterator[str]:
    """One policy that admits the pods to each other, one that admits the operator to the dashboard, nobody else."""
    specs = {document["metadata"]["name"]: document["spec"] for document in policies}
    among, operator = specs.get("ichsearch", {}), specs.get("ichsearch-operator", {})
    own = among.get("podSelector", {})
    for template in templates:
        labels = template.get("metadata", {}).get("labels", {})
        if not own.get("matchLabels") or not own["matchLabels"].items() <= labels.items():
            yield f"the policy must select every pod, but not one with {labels}"
    if among.get("ingress") != [{"from": [{"podSelector": own}]}]:
        yield "the pods must be reached by each other alone, from this namespace"
    rule = (operator.get("ingress") or [{}])[0]
    if rule.get("ports") != [{"protocol": "TCP", "port": PORTS["dashboard"]}] or len(operator.get("ingress", [])) != 1:
        yield "the operator must reach the dashboard and nothing else"
    if [sorted(peer) for peer in rule.get("from", [])] != [["namespaceSelector", "podSelector"]]:
        yield "the operator must be named by namespace and label together"
    if operator.get("podSelector") != {"matchLabels": {**own.get("matchLabels", {}), "ray.io/node-type": "head"}}:
        yield "the operator must reach the head alone"
    if any(spec.get("policyTypes") != ["Ingress"] for spec in specs.values()):
        yield "a policy must be about who comes in"
