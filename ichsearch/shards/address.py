"""Which Ray cluster a command works on, why that one, and whether it is fit to be connected to.

In: what `--address` and the environment say. Out: an `Address`, or why there is none to work with.
"""

import logging
import os
import re
import secrets
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final, NamedTuple

import grpc
from ray._private import services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS

from ichsearch.errors import ClusterError

LOCAL: Final = "local"
AUTO: Final = "auto"
HOST_AND_PORT: Final = re.compile(r"\[?([^/\[\]]+)\]?:(\d+)")
ANSWER_SECONDS: Final = 10
CLUSTER_ID: Final = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What every driver asks first."""


class Address(NamedTuple):
    """A cluster, and why it was chosen."""

    where: str
    """`local` for a private cluster on this machine, else `host:port`."""
    why: str

    @property
    def is_private(self) -> bool:
        """Whether the cluster is started for this command, and ends with it."""
        return self.where == LOCAL


def choose_address(given: str | None) -> Address:
    """The cluster that `--address` names, else `RAY_ADDRESS` (as inside `ray job submit`), else a private one.

    Never some cluster that happens to run, unless `auto` asks for that.

    Raises:
        ClusterError: it names none that a search can work on.
    """
    named, source = given or os.environ.get("RAY_ADDRESS", ""), "--address" if given else "RAY_ADDRESS"
    if not named:
        return Address(LOCAL, "no --address, no RAY_ADDRESS")
    if named == LOCAL:
        return Address(LOCAL, f"{source} says local")
    if named == AUTO:
        return Address(_running_here(), f"the cluster that runs on this machine; {source} says auto")
    if HOST_AND_PORT.fullmatch(named):
        return Address(named, f"{source} says so")
    raise ClusterError(f"{source} must be host:port, auto or local, but is {named!r}; {_remedy(named)}")


def _remedy(named: str) -> str:
    submit = "ray job submit --address http://HOST:8265 -- ichsearch ..."
    if named.startswith("ray://"):
        return f"a search cannot be driven through Ray Client: run it inside the cluster, `{submit}`"
    if named.startswith(("http://", "https://")):
        return f"that is a dashboard, which takes jobs: `{submit}`, or give the cluster's host:port (6379 by default)"
    return "give the cluster's host:port (6379 by default)"


def _running_here() -> str:
    """The cluster that `ray start` started last, else the only one whose processes are there."""
    noted = services.find_bootstrap_address(None)
    if noted and _answers(noted) is None:
        return str(noted)
    found = sorted(services.find_gcs_addresses())
    if len(found) == 1:
        return str(found[0])
    what = f"several run: {', '.join(found)}" if found else "none does"
    remedy = "name one" if found else "start one with `ray start --head`, or leave --address out"
    raise ClusterError(f"--address auto needs one Ray cluster running on this machine, but {what}; {remedy}")


def check_answers(where: str) -> None:
    """Refuse an address at which nothing listens, and a cluster whose token we lack: Ray would wait for long.

    Raises:
        ClusterError: the address is no use.
    """
    if error := _answers(where):
        raise no_cluster(where, error) from error
    if os.environ.get("RAY_USE_TLS", "0") == "1":  # its certificates are Ray's business
        return
    if not _refuses(where, grpc.insecure_channel(where, options=GLOBAL_GRPC_OPTIONS)):  # as Ray's own: through no proxy
        return
    remedy = f"put that of its head node into {token_path()} (chmod 600) or RAY_AUTH_TOKEN"
    if not _use_token():
        raise ClusterError(f"the cluster at {where} asks for a token; {remedy}, and do not set RAY_AUTH_MODE=disabled")
    if _refuses(where, init_grpc_channel(where, options=GLOBAL_GRPC_OPTIONS)):
        raise ClusterError(f"the cluster at {where} must be given its own token, but got another one; {remedy}")


def _answers(where: str) -> Exception | None:
    """None if something listens there, else what is wrong."""
    place = HOST_AND_PORT.fullmatch(where)
    assert place is not None, "addresses were checked when they were chosen"
    try:
        socket.create_connection((place[1], int(place[2])), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:  # no answer, no such port, no name
        return error
    return None


def no_cluster(where: str, error: Exception | str) -> ClusterError:
    """What to say of an address at which no cluster is."""
    why = str(error).strip().partition("\n")[0]
    if where == LOCAL:
        return ClusterError(f"Ray must start on this machine, but does not ({why}); see the logs in /tmp/ray")
    return ClusterError(f"a Ray cluster must answer at {where!r}, but none does ({why}); check --address")


def _refuses(where: str, channel: grpc.Channel) -> bool:
    """Whether the cluster refuses a call for want of the right token; ClusterError if what listens there is none."""
    with channel:
        try:
            channel.unary_unary(CLUSTER_ID)(b"", timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise no_cluster(where, f"what listens there does not speak Ray's language: {error.code().name}") from error
    return False


def _use_token() -> bool:
    """Give the user's token to a cluster that asks for one; whether there is any, and `RAY_AUTH_MODE` allows it."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # as `ray.init` will do, but this comes first, and has a say
    known = bool(os.environ.get("RAY_AUTH_TOKEN")) or holds_token(token_path())
    return known and maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def token_path() -> Path:
    """Where Ray reads its token from, unless `RAY_AUTH_TOKEN` holds it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def holds_token(path: Path) -> bool:
    """Whether a file holds a token, and is not empty, as one may be whose writer was killed."""
    return path.is_file() and path.stat().st_size > 0


def provide_token() -> None:
    """Have a token that is its owner's alone, for which Ray lets a private cluster ask: its own all could read."""
    path = token_path()
    if holds_token(path):
        if path.stat().st_uid == os.getuid():
            path.chmod(0o600)
    elif not os.environ.get("RAY_AUTH_TOKEN"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, prefix=".auth_token.") as file:  # of mode 0600
            file.write(secrets.token_hex(32))
            file.flush()
            if path.is_file() and not holds_token(path):
                path.unlink(missing_ok=True)
            with suppress(FileExistsError):  # another command was faster
                os.link(file.name, path)


def is_loopback(dashboard: str) -> bool:
    """Whether a dashboard's address, host:port, is one of this machine alone."""
    host = dashboard.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_open(dashboard: str) -> bool:
    """Whether a dashboard at host:port answers anybody, without a token; through no proxy, which may not reach it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{dashboard}/api/version", timeout=ANSWER_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def check_dashboard(dashboard: str) -> None:
    """Refuse a cluster whose dashboard lets anybody in the network run code.

    Raises:
        ClusterError: it listens beyond its machine and asks for no token.
    """
    if dashboard and not is_loopback(dashboard) and is_open(dashboard):
        raise ClusterError(
            f"a dashboard that others can reach must ask for a token, but that at {dashboard} does not: whoever "
            "reaches it can run code on the cluster. Start the cluster's nodes anew with RAY_AUTH_MODE=token and one "
            "token (`ray get-auth-token --generate`), or its head with --dashboard-host 127.0.0.1"
        )
