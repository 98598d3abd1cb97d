"""What is wrong with the `ray up` files, the image and the commands of `cluster/`: no complaint about good ones.

In: files parsed as Ray and docker parse them. Out: sentences; tests hold them against wrong variants too.
"""

import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Final

import botocore.session
import click
import jsonschema
import typer.main
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from ichsearch import __version__
from ichsearch.cli import app

ROOT: Final = Path(__file__).parent.parent
CLUSTER: Final = ROOT / "cluster"
WHEEL: Final = f"ichsearch-{__version__}-py3-none-any.whl"
PINS: Final = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
TOKEN: Final = "~/.ray/auth_token"  # noqa: S105 - where it lies
STOP_S: Final = 15
STOP_VARIABLE: Final = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_WAIT: Final = f"{STOP_VARIABLE}={STOP_S}"
"""How long a job that is stopped has to end in order: more than ichsearch takes."""
DECODED_GB: Final = 99
"""All slices of RSNA 2019, at 256 px."""
SYSTEM_GB: Final = 20
"""With PyTorch."""
BLANK: Final = re.compile(r"<(?=\S)(?:[^<>]*: )?([^<>\n]*)>")
"""What a user fills in: <what it is: an example>."""

PROVIDER_KEYS: Final = {
    "local": {"type", "head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
    "aws": {"type", "region", "availability_zone", "use_internal_ips", "cache_stopped_nodes", "security_group"},
    "gcp": {"type", "region", "availability_zone", "use_internal_ips", "cache_stopped_nodes", "project_id"},
}
"""That Ray 2.60's node providers read; its schema lets any other one pass."""

GCP_INSTANCE: Final = {
    "machineType": str,
    "disks": [{"boot": bool, "autoDelete": bool, "type": str,
               "initializeParams": {"diskSizeGb": int, "diskType": str, "sourceImage": str}}],
    "networkInterfaces": [{"subnetwork": str}],  # no accessConfigs: they are public addresses
    "serviceAccounts": [{"email": str, "scopes": [str]}],
    "guestAccelerators": [{"acceleratorType": str, "acceleratorCount": int}],
    "scheduling": {"provisioningModel": str, "instanceTerminationAction": str, "automaticRestart": bool,
                   "onHostMaintenance": str, "preemptible": bool},
}  # fmt: skip
"""What the files use of `Instance` in the Compute Engine API v1 (googleapis' discovery document, revision of 2026)."""

Check = Callable[[Mapping[str, Any]], Iterable[str]]

GPU_MACHINES: Final = {"aws": re.compile(r"(g|gr|p)\d"), "gcp": re.compile(r"[ag]\d-(standard|highgpu|megagpu)")}


def filled(value: Any) -> Any:
    """A file with its blanks filled in by their examples."""
    if isinstance(value, Mapping):
        return {key: filled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item) for item in value]
    return BLANK.sub(r"\1", value) if isinstance(value, str) else value


def ray_up_complaints(config: Mapping[str, Any]) -> list[str]:
    """About a file for `ray up`."""
    config = filled(config)
    provider = config.get("provider", {}).get("type")
    forms: list[Check] = [_schema, {"aws": _aws_nodes, "gcp": _gcp_nodes}.get(provider, _provider)]
    checks: list[Check] = [_provider, _starts, _token, _setup]
    if provider in GPU_MACHINES:
        checks += [_head, _workers, _counts]
    for check in forms:  # what is not of the right form cannot be looked at
        if complaints := list(check(config)):
            return complaints
    return [complaint for check in checks for complaint in check(config)]


def _schema(config: Mapping[str, Any]) -> Iterator[str]:
    """Ray's own checks, on the file with the defaults that Ray adds."""
    try:
        validate_config(prepare_config(deepcopy(dict(config))))
    except (jsonschema.ValidationError, click.ClickException, ValueError, RuntimeError, KeyError) as error:
        yield f"Ray refuses it: {getattr(error, 'message', None) or error!r}"


def _provider(config: Mapping[str, Any]) -> Iterator[str]:
    provider = config.get("provider", {})
    if unknown := provider.keys() - PROVIDER_KEYS.get(provider.get("type"), set()):
        yield f"Ray reads no {sorted(unknown)} of this provider"
    if provider.get("type") != "local" and provider.get("use_internal_ips") is not True:
        yield "use_internal_ips must be true"


def _starts(config: Mapping[str, Any]) -> Iterator[str]:
    """How Ray is started: authenticated, silent to the outside, dashboard on the loopback, with options that it has."""
    ports = set()
    for kind, needed in (
        (
            "head",
            {"--head": "", "--dashboard-host": "127.0.0.1", "--autoscaling-config": "~/ray_bootstrap_config.yaml"},
        ),
        ("worker", {"--address": "$RAY_HEAD_IP:6379"}),
    ):
        command = next((line for line in config.get(f"{kind}_start_ray_commands", []) if "ray start" in line), "")
        before, _, after = command.partition("ray start ")
        for variable in ("RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", *([STOP_WAIT] if kind == "head" else [])):
            if not re.search(rf"\bexport\b[^;]*\b{variable}(?=[ ;])", before):
                yield f"the {kind} must be started with {variable}"
        words = re.split(r"[;&|()]", after)[0].split()
        yield from unknown_options(["start", *words], ray_cli)
        options = dict((*word.partition("="),)[::2] for word in words)
        yield from (f"the {kind} needs {key}={value}" for key, value in needed.items() if options.get(key) != value)
        ports.add(options.get("--port") or options.get("--address", "").rpartition(":")[2])
    if len(ports) != 1:
        yield f"head and workers must agree on the port, but they have {ports}"


def _token(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("file_mounts", {}).get(TOKEN) != TOKEN:
        yield "the token must be copied to every machine"
    if f"chmod 600 {TOKEN}" not in config.get("setup_commands", []):
        yield "the token must be closed to others"


def _setup(config: Mapping[str, Any]) -> Iterator[str]:
    """The very version: this wheel with these constraints; whatever else is installed has its version fixed."""
    mounts = config.get("file_mounts", {})
    commands = [line for kind in ("", "head_", "worker_") for line in config.get(f"{kind}setup_commands", [])]
    if not any(f"-c ~/ichsearch/constraints.txt ~/ichsearch/{WHEEL}" in line for line in commands):
        yield f"{WHEEL} must be installed with constraints.txt"
    for package, version in re.findall(r"([\w-]+)==([\w.]+)", "\n".join(commands)):
        if version != PINS.get(package, version):
            yield f"{package} must be {PINS[package]}, but is {version}"
    for line in commands:
        if "pip install" in line and "-c " not in line and "==" not in line and "--no-deps" not in line:
            yield f"nothing fixes the versions of: {line}"
        yield from (f"{path} is not copied to the machines" for path in _paths(line) if path not in mounts)
    for there, here in mounts.items():
        if there != TOKEN and here != f"dist/{WHEEL}" and not (ROOT / here).is_file():
            yield f"{here} is no file of this repository"


def _paths(line: str) -> list[str]:
    return [path for path in re.findall(r"~/ichsearch/[\w./-]+", line) if not path.startswith("~/ichsearch/venv")]


def shell_complaints(config: Mapping[str, Any]) -> list[str]:
    """About the commands of a file for `ray up`, as bash reads them."""
    commands = [line for key, lines in config.items() if key.endswith("commands") for line in lines]
    done = subprocess.run(["bash", "-n"], input="\n".join(commands), capture_output=True, text=True, check=False)
    return done.stderr.splitlines()


def _node_types(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    types = dict(config.get("available_node_types", {}))
    return types.pop(config.get("head_node_type"), {}), types


def _machine(node_type: Mapping[str, Any]) -> str:
    node = node_type.get("node_config", {})
    return str(node.get("InstanceType", node.get("machineType", "")))


def _is_spot(node_type: Mapping[str, Any]) -> bool:
    node = node_type.get("node_config", {})
    scheduling = node.get("scheduling", {})
    return (
        node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or scheduling.get("provisioningModel") == "SPOT"
        or scheduling.get("preemptible") is True
    )


def _head(config: Mapping[str, Any]) -> Iterator[str]:
    head, _ = _node_types(config)
    if head.get("resources") != {"CPU": 0}:
        yield "the head must offer no CPU and no GPU to trials"
    if GPU_MACHINES[config["provider"]["type"]].match(_machine(head)) or "guestAccelerators" in head["node_config"]:
        yield f"the head needs no GPU, but {_machine(head)} has one"
    if _is_spot(head):
        yield "the head must not be a spot machine: the run ends with it"


def _workers(config: Mapping[str, Any]) -> Iterator[str]:
    for name, worker in _node_types(config)[1].items():
        if not _is_spot(worker):
            yield f"{name} must be a spot machine"
        if not GPU_MACHINES[config["provider"]["type"]].match(_machine(worker)):
            yield f"{name} must have a GPU, but {_machine(worker)} has none"
        notice = f"RAY_ADDRESS=$RAY_HEAD_IP:6379 setsid sh ~/ichsearch/spot_notice.sh {config['provider']['type']} "
        if not any(notice in line for line in config.get("worker_start_ray_commands", [])):
            yield f"nothing tells {name} that the cloud will take it"


def _counts(config: Mapping[str, Any]) -> Iterator[str]:
    head, workers = _node_types(config)
    most = sum(worker.get("max_workers", 0) for worker in workers.values())
    if config.get("max_workers") != most:
        yield f"max_workers must be the workers' sum, {most}, but is {config.get('max_workers')}"
    if head.get("max_workers") != 0 or any(worker.get("min_workers") != 0 for worker in workers.values()):
        yield "a cluster that nobody uses must shrink to its head"


@cache
def _run_instances() -> Any:
    return botocore.session.get_session().get_service_model("ec2").shape_for("RunInstancesRequest")


def _aws_nodes(config: Mapping[str, Any]) -> Iterator[str]:
    """What EC2 says of the instances, as Ray asks for them: `SubnetIds` is Ray's own, one of them is sent."""
    for name, node_type in config["available_node_types"].items():
        node = dict(node_type["node_config"])
        subnets = node.pop("SubnetIds", [])
        if not subnets or not node.get("SecurityGroupIds"):
            yield f"{name} needs subnets and security groups: Ray's own group admits SSH from everywhere"
        report = ParamValidator().validate(
            {**node, "SubnetId": (subnets or [""])[0], "MinCount": 1, "MaxCount": 1}, _run_instances()
        )
        if report.has_errors():
            yield f"EC2 refuses {name}: {report.generate_report()}"
        yield from _disks(name, [disk["Ebs"].get("VolumeSize", 0) for disk in node.get("BlockDeviceMappings", [])])
        if not all(disk["Ebs"].get("Encrypted") for disk in node.get("BlockDeviceMappings", [])):
            yield f"{name}'s disk must be encrypted"
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name} must need a token for its metadata"


def _gcp_nodes(config: Mapping[str, Any]) -> Iterator[str]:
    for name, node_type in config["available_node_types"].items():
        yield from _shape(node_type["node_config"], GCP_INSTANCE, name)
        disks = node_type["node_config"].get("disks", [])
        yield from _disks(name, [disk["initializeParams"].get("diskSizeGb", 0) for disk in disks])
        if not node_type["node_config"].get("networkInterfaces"):
            yield f"{name} needs a network of its own choice: Ray's has public addresses"
        if name != config["head_node_type"] and node_type["resources"].get("GPU", 0) < 1:
            yield f"{name} must say how many GPUs it has"


def _disks(name: str, sizes_gb: Iterable[int]) -> Iterator[str]:
    """The driver decodes slices, as the workers do, into at most half of what is free."""
    if (max(sizes_gb, default=0) - SYSTEM_GB) / 2 < DECODED_GB:
        yield f"{name}'s disk must hold the slices of a large set"


def _shape(value: Any, shape: Any, where: str) -> Iterator[str]:
    if isinstance(shape, dict) and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _shape(item, shape[key], f"{where}.{key}") if key in shape else [f"{where} has no {key}"]
    elif isinstance(shape, list) and isinstance(value, list):
        for item in value:
            yield from _shape(item, shape[0], where)
    elif isinstance(shape, dict | list) or not isinstance(value, shape):
        yield f"{where} must be {shape}, but is {value!r}"


def blank_complaints(text: str) -> list[str]:
    """About what a user fills in: all of it at the top, and every value of it used."""
    top, found, rest = text.partition("\nspec:\n" if "\nkind:" in text else "\n\ncluster_name:")
    complaints = [
        f"to be filled in, but not at the top: {blank}" for blank in [blank[0] for blank in BLANK.finditer(rest)]
    ]
    unused = [name for name in re.findall(r" &(\w+) ", top) if not re.search(rf"\*{name}\b", rest)]
    complaints += [f"nothing uses {name}" for name in unused]
    if not found or "FILL IN" not in top:
        complaints.append("it must say what to fill in")
    return complaints


def dockerfile_complaints(text: str) -> list[str]:
    """About the image."""
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    steps = [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]
    of = lambda kind: [rest for name, rest in steps if name == kind]  # noqa: E731 - a word for a table
    user = (of("USER") or ["root"])[-1]
    rules = {
        "the base must be a slim Python of a fixed version": re.match(r"python:3\.\d+-slim-\w+$", of("FROM")[0]),
        "it must run as a number that is not root's": re.match(r"[1-9]\d*:[1-9]\d*$", user),
        "ADD fetches and unpacks what nobody has seen: COPY": not of("ADD"),
        f"{WHEEL} must be installed with constraints.txt": any(
            f"/{WHEEL}" in rest and "-c /tmp/ichsearch/constraints.txt" in rest for rest in of("RUN")
        ),
        "it must copy the wheel and constraints.txt alone": of("COPY")
        == [f"constraints.txt dist/{WHEEL} /tmp/ichsearch/"],
        "a secret has no place in an image": not re.search(
            r"(?i)(secret|password|auth_token|access_key|credential)", "\n".join(of("ARG") + of("ENV") + of("COPY"))
        ),
        "usage statistics must be off": "RAY_USAGE_STATS_ENABLED=0" in " ".join(of("ENV")),
        "Ray must ask for the token": "RAY_AUTH_MODE=token" in " ".join(of("ENV")),
    }  # fmt: skip
    return [complaint for complaint, holds in rules.items() if not holds]


def unknown_options(words: Sequence[str], command: Any) -> list[str]:
    """Verbs and options before `--` that a command line does not have."""
    for number, word in enumerate(words):
        if word == "--":
            return []
        if word.startswith("-"):
            known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
            if word.partition("=")[0] not in known:
                return [f"{command.name} has no {word}"]
        elif verbs := getattr(command, "commands", None):
            return unknown_options(words[number + 1 :], verbs[word]) if word in verbs else [f"no verb {word}"]
    return []


@cache
def _ichsearch() -> Any:
    return typer.main.get_command(app)


def command_complaints(line: str) -> list[str]:
    """About one line of shell: options of `ray` and `ichsearch`, files of this repository."""
    complaints: list[str] = []
    commands = {"ray": ray_cli, "ichsearch": _ichsearch()}
    for part in re.split(r"&&|;|\|", line):
        words = shlex.split(part, comments=True)
        for number, word in enumerate(words):
            if word in commands and (number == 0 or words[number - 1] in ("--", "exec") or "=" in words[number - 1]):
                complaints += unknown_options(words[number + 1 :], commands[word])
            if re.match(r"(cluster|search_spaces)/", word) and not (ROOT / word).exists():
                complaints.append(f"there is no {word}")
    return complaints


def readme_commands(text: str) -> list[str]:
    """Lines of its shell blocks, those that go on joined."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def readme_complaints(text: str) -> list[str]:
    """About the README: its commands, and the files that it names."""
    complaints = [complaint for line in readme_commands(text) for complaint in command_complaints(line)]
    if any("ray start --head" in line and STOP_WAIT not in line for line in readme_commands(text)):
        complaints.append(f"the head must be started with {STOP_WAIT}")
    for name in re.findall(r"[(`]([\w./-]+\.(?:yaml|sh|py)|Dockerfile)[)`]", text):
        if not any((folder / name).is_file() for folder in (CLUSTER, ROOT, ROOT / "search_spaces")):
            complaints.append(f"there is no {name}")
    return complaints
