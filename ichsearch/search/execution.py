"""The book's trials, run by Ray Tune.

In: a book, what workers need to know, whom to tell. Out: trials, run and told.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError

from ichsearch.errors import ClusterError
from ichsearch.search.book import Book
from ichsearch.search.events import Event, again, avoided, ended, started, waiting
from ichsearch.search.gauges import Gauges
from ichsearch.search.nodes import Nodes
from ichsearch.search.resources import Requests, node_name, nodes_by_id
from ichsearch.search.room import DISK_FULL, no_room
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.searcher import BookSearcher, Hearers
from ichsearch.search.throttle import Throttled
from ichsearch.search.tune_hooks import Beat, FirstCome
from ichsearch.shards.nodes import is_lost

RAY_TUNE_SETTINGS: Final = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own would end the run with exit code 0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trial's folder holds its metrics
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # the searcher hands out no more than can start
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's pickled state is never read
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Execution:
    """How the trials of a run are run, and who hears of them."""

    name: str
    metric: str
    folder: RunFolder
    requests: Requests
    max_retries: int
    trial: Callable[[dict[str, Any]], None]
    tell: Callable[[Event], None]
    write_leaderboard: Callable[[RunFolder], None]


class _GivenUpError(Exception):
    """Ends Ray Tune, which would wait for nodes as long as it has a trial."""


class _StuckError(Exception):
    """Ends Ray Tune to hand out anew what waits for nodes that have gone."""


def run_trials(book: Book, execution: Execution) -> str:
    """Run trials until the book has no more, or its time is over and no node is left that could hold one.

    The leaderboard follows the trials within seconds, and is whole when this returns or is interrupted.

    Returns:
        "", or which disk became full, of a worker or of this driver, as `no_room` says it.

    Raises:
        ClusterError: the cluster went away.
    """
    os.environ.update(RAY_TUNE_SETTINGS)
    # Ray prints the traceback of every failed trial; ours stands in the trial's error.txt, its reason on the console.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    leaderboard = Throttled(lambda: execution.write_leaderboard(execution.folder))
    searcher = _searcher(book, execution, leaderboard)
    try:
        while not _run_until_stuck(book, execution, searcher, leaderboard):
            searcher.hand_back_all()
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return no_room(execution.folder)
    return searcher.disk_full


def _run_until_stuck(book: Book, execution: Execution, searcher: BookSearcher, leaderboard: Throttled) -> bool:
    """Have Ray Tune run trials; False if all that is left waits for nodes that have gone."""
    gauges = _gauges(book, execution.name, searcher)
    clock = Throttled(book.keep_time, least_pause_s=60.0)

    def beat() -> None:
        if searcher.failure:
            raise searcher.failure
        if searcher.given_up:
            raise _GivenUpError
        if searcher.is_stuck():
            raise _StuckError
        leaderboard.tick()
        for work in (gauges, clock):
            work.ask()
            work.tick()

    with tempfile.TemporaryDirectory(prefix="ichsearch-tune-", ignore_cleanup_errors=True) as scratch:
        try:
            with suppress(_GivenUpError):
                _tuner(execution, searcher, beat, scratch).fit()
        except _StuckError:
            return False
        except (RayError, TuneError, ConnectionError) as error:
            raise ClusterError(f"the cluster was lost ({type(error).__name__}); run the same command again") from error
        finally:
            leaderboard.now()
            gauges.now()
    return True


def _searcher(book: Book, execution: Execution, leaderboard: Throttled) -> BookSearcher:
    def on_end(trial: Any, result: Any, reason: str) -> None:
        leaderboard.ask()
        execution.tell(ended(trial, result, reason, book.standing(), execution.metric))

    hearers = Hearers(
        on_start=lambda trial: execution.tell(started(trial)),
        on_end=on_end,
        on_wait=lambda request: execution.tell(waiting(request)),
        on_again=lambda trial, reason, node: execution.tell(again(trial, reason, node and node_name(node))),
        on_avoid=lambda node: execution.tell(avoided(node_name(node))),
    )
    nodes = Nodes(nodes_by_id, execution.requests.least, is_lost)
    return BookSearcher(book, execution.folder, execution.requests, nodes, hearers, execution.max_retries)


def _gauges(book: Book, name: str, searcher: BookSearcher) -> Throttled:
    gauges = Gauges(name)
    return Throttled(lambda: gauges.show(book.standing(), searcher.images_per_s))


def _tuner(execution: Execution, searcher: BookSearcher, beat: Callable[[], None], scratch: str) -> tune.Tuner:
    # Plain dicts: Ray pickles what the function knows, and a worker would import all that a class of ours stands on.
    whole, by_backbone = execution.requests.whole, execution.requests.by_backbone

    def resources(job: dict[str, Any]) -> tune.PlacementGroupFactory:
        request = by_backbone.get(job["config"]["backbone"], whole)
        bundles = [{kind: amount for kind, amount in request.items() if amount}]
        if not job["avoid"]:
            return tune.PlacementGroupFactory(bundles)
        elsewhere = {"ray.io/node-id": f"!in({','.join(job['avoid'])})"}
        return tune.PlacementGroupFactory(bundles, bundle_label_selector=[elsewhere] * len(bundles))

    return tune.Tuner(
        tune.with_resources(execution.trial, resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=FirstCome(searcher.errors),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["label"],
            trial_dirname_creator=lambda trial: trial.config["trial"],
        ),
        run_config=tune.RunConfig(
            name=execution.name,
            storage_path=scratch,
            verbose=0,
            callbacks=[Beat(beat, searcher.on_place)],  # and no retries of Ray Tune's: see the searcher
        ),
    )
