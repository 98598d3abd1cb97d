"""A connection to Ray, and work fanned out over it with back-pressure.

In: an address, functions and their jobs. Out: results, in the order in which they finish.
"""

import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from ichsearch.errors import ClusterError

Job = TypeVar("Job")
Result = TypeVar("Result")

TASKS_PER_CPU: Final = 2
"""Queued tasks a core: enough that no core waits for the driver, few enough that results do not pile up."""
HOST_AND_PORT: Final = re.compile(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)")
ANSWER_SECONDS: Final = 10


@contextmanager
def ray_session(address: str | None = None) -> Iterator[str]:
    """Connect to Ray, yield the dashboard's address ('' without one), and disconnect.

    Without `address` it is `RAY_ADDRESS` when set (as inside `ray job submit`), else a private cluster on this
    machine; never some cluster that happens to run. Within an open session it joins that one.

    Raises:
        ClusterError: no cluster at the address.
    """
    if ray.is_initialized():
        yield ""
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a trial without GPUs leaves the variables alone
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_answers(where)
    try:
        context = ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None)
    except Exception as error:  # a node that does not start in time is a plain Exception
        raise _no_cluster(where, error) from error
    _protect_token()
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        ray.shutdown()


def _check_answers(where: str) -> None:
    """Refuse an address with a port at which nothing listens: Ray would wait for it for ever."""
    if not (place := HOST_AND_PORT.fullmatch(where)):
        return
    try:
        socket.create_connection((place[1], int(place[2])), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:  # no answer, no such port, no name
        raise _no_cluster(where, error) from error


def _no_cluster(where: str, error: Exception) -> ClusterError:
    return ClusterError(f"a Ray cluster must answer at {where!r}, but none does ({error}); check --address")


def _protect_token() -> None:
    """Make the token that `ray.init` writes world-readable its owner's alone: it opens the cluster."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.is_file() and path.stat().st_uid == os.getuid():
        path.chmod(0o600)


def fan_out(function: Callable[..., Result], jobs: Iterable[Job], *common: Any, **options: Any) -> Iterator[Result]:
    """Run `function(job, *common)` as Ray tasks of `options`, a bounded number at a time; results as they finish.

    Raises:
        ClusterError: a task was lost with its worker or node.
        Exception: whatever `function` raised.
    """
    task = ray.remote(**{"num_cpus": 1, **options})(function)
    limit = max(2, TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
    shared = [ray.put(value) for value in common]
    waiting = iter(jobs)
    running: list[Any] = []
    exhausted = False
    while running or not exhausted:
        while not exhausted and len(running) < limit:
            try:
                running.append(task.remote(next(waiting), *shared))
            except StopIteration:
                exhausted = True
        if running:
            (done,), running = ray.wait(running)
            yield _result(done)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise ClusterError(
            f"a task was lost with its worker ({type(error).__name__}); run the same command again"
        ) from error
