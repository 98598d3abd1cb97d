"""A connection to Ray, and work fanned out over it with back-pressure.

In: an address, functions and their jobs. Out: results, in the order in which they finish.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from ichsearch.errors import ClusterError
from ichsearch.shards.address import (
    Address,
    check_answers,
    check_dashboard,
    choose_address,
    no_cluster,
    provide_token,
)
from ichsearch.shards.cluster_watch import watched
from ichsearch.shards.nodes import check_versions

Job = TypeVar("Job")
Result = TypeVar("Result")

TASKS_PER_CPU: Final = 2
"""Queued tasks a core: enough that no core waits for the driver, few enough that results do not pile up."""


@contextmanager
def ray_session(address: str | None = None, *, checked: bool = True) -> Iterator[str]:
    """Connect to Ray, yield the dashboard's address ('' without one), and disconnect.

    Which cluster that is, `choose_address` says; unless `checked` is false it must be safe, and its nodes run what this
    driver runs. Within an open session it joins that one.

    Raises:
        ClusterError: no cluster at the address, or none to work with; or it was lost.
    """
    if ray.is_initialized():
        yield ""
        return
    chosen = choose_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if chosen.is_private:
        provide_token()
    else:
        check_answers(chosen.where)
    with watched() as watch:
        try:
            dashboard = _connect(chosen)
            watch.start(ray.get_runtime_context().gcs_address)
            if checked and not chosen.is_private:
                check_dashboard(dashboard)
                check_versions()
            yield f"http://{dashboard}" if dashboard else ""
        finally:
            watch.close(ray.shutdown)


def _connect(chosen: Address) -> str:
    """Start or join the cluster; the dashboard's address."""
    try:
        with _signals_kept():
            context = ray.init(
                address=chosen.where, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None
            )
    except Exception as error:  # a node that does not start in time is a plain Exception
        raise _explained(chosen, error) from error
    return context.dashboard_url or ""


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, which Ray replaces by its own, a `SystemExit`, when it starts.

    That is lost where Python only reports exceptions, as in what it does at a fork: a pipe keeps the signal's number,
    and nothing is reported.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write)
    report, sys.unraisablehook = sys.unraisablehook, _silent_of_exits(sys.unraisablehook)
    try:
        yield
    except SystemExit:
        if signal.SIGTERM not in (heard := _heard(read)):
            raise
    else:
        heard = _heard(read)
    finally:
        sys.unraisablehook = report
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, before)
        for end in (read, write):
            os.close(end)
    if signal.SIGTERM in heard:
        signal.raise_signal(signal.SIGTERM)


def _silent_of_exits(report: Callable[[Any], object]) -> Callable[[Any], object]:
    """What reports exceptions that cannot be raised, save `SystemExit`."""
    return lambda found: None if issubclass(found.exc_type, SystemExit) else report(found)


def _heard(read: int) -> bytes:
    """The numbers of the signals that have come."""
    try:
        return os.read(read, 1 << 10)
    except BlockingIOError:
        return b""


def _explained(chosen: Address, error: Exception) -> ClusterError:
    cause: BaseException | None = error
    while cause is not None:
        if "ersion mismatch" in str(cause):
            what = " ".join(str(cause).split())
            return ClusterError(f"driver and cluster must have the same Ray and Python; install those here: {what}")
        cause = cause.__cause__
    return no_cluster(chosen.where, error)


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
