"""What a run's best trial is worth: whether it can be told from the others, and from the rules that see no image.

In: a run folder and its shards. Out: the run ranked, its leaderboard, `summary.json`, and a few lines of text.
"""

from pathlib import Path
from typing import Any, NamedTuple

from ichsearch.files import write_json
from ichsearch.report.bootstrap import MIN_PATIENTS
from ichsearch.report.confirmation import opened_text
from ichsearch.report.leaderboard import write_leaderboard
from ichsearch.report.ranking import Ranked, Ranking, rank_trials
from ichsearch.search.openings import read_openings
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.metrics import LOWER_IS_BETTER


class Rival(NamedTuple):
    """The baseline with the best score, and how far the best trial is from it.

    Attributes:
        name: of the baseline.
        score: on the same slices.
        difference: the best trial's score minus this one; with its 95 % interval.
        low: of that interval.
        high: of that interval.
    """

    name: str
    score: float
    difference: float
    low: float
    high: float


class Summary(NamedTuple):
    """The best trial on the validation patients.

    Attributes:
        trial: its id.
        backbone: its backbone.
        metric: what trials are ranked by.
        score: its score, chosen as the best of all and so optimistic.
        low: of the score's 95 % interval.
        high: of the score's 95 % interval.
        slices: of the validation patients.
        patients: of them.
        reliable: whether they are enough for intervals to mean something.
        trials: how many have finished.
        tied: the other trials that cannot be told from it.
        unbeaten: the baselines that it is not shown to beat.
        rival: None where no baselines were fitted.
        unreadable: finished trials that are not ranked, since their predictions are damaged.
        openings: how often the test fold was opened.
        leaky: whether slices of these patients were trained on: a split by slice.
    """

    trial: str
    backbone: str
    metric: str
    score: float
    low: float
    high: float
    slices: int
    patients: int
    reliable: bool
    trials: int
    tied: tuple[str, ...]
    unbeaten: tuple[str, ...]
    rival: Rival | None
    unreadable: tuple[str, ...]
    openings: int
    leaky: bool = False


def summarise(folder: RunFolder, shards: Path | None) -> Summary:
    """Rank the run, write its leaderboard, and keep what it comes to in `summary.json`; see `rank_trials`."""
    ranking = rank_trials(folder, shards)
    write_leaderboard(folder)
    record, best = folder.record(ranking.best), ranking.trials[ranking.best]
    assert record is not None, "a ranked trial has a record"
    summary = Summary(
        trial=ranking.best,
        backbone=record.config["backbone"],
        metric=ranking.metric,
        score=best.value,
        low=best.low,
        high=best.high,
        slices=ranking.slices,
        patients=ranking.patients,
        reliable=ranking.reliable,
        trials=len(ranking.trials),
        tied=tuple(trial for trial in ranking.tied if trial != ranking.best),
        unbeaten=tuple(name for name in ranking.baselines if name not in best.beats),
        rival=_rival(ranking),
        unreadable=ranking.unreadable,
        openings=len(read_openings(folder)),
        leaky=folder.leaks,
    )
    write_json(folder.summary, summary_as_json(summary))
    return summary


def summary_as_json(summary: Summary) -> dict[str, Any]:
    """The summary as `summary.json` has it."""
    return summary._asdict() | {"rival": summary.rival and summary.rival._asdict()}


def _rival(ranking: Ranking) -> Rival | None:
    if not ranking.baselines:
        return None

    def loss(name: str) -> float:
        value = ranking.baselines[name].value
        return value if ranking.metric in LOWER_IS_BETTER else -value

    name = min(ranking.baselines, key=loss)
    rule: Ranked = ranking.baselines[name]
    return Rival(name, rule.value, -rule.difference, -rule.difference_high, -rule.difference_low)


def summary_text(summary: Summary) -> str:
    """What a person should take from the run, and what not."""
    interval = f" (95 % {summary.low:.3f} to {summary.high:.3f})" if summary.reliable else ""
    missing = summary.unreadable
    if summary.leaky:
        return _leaky_text(summary)
    return "\n".join(
        [
            f"best trial {summary.trial} ({summary.backbone}): {summary.metric} {summary.score:.3f}{interval} "
            f"on {summary.slices} validation slices of {summary.patients} patients",
            f"other trials: {_others(summary)}",
            *([f"not ranked, since their predictions cannot be read: {', '.join(missing)}"] if missing else []),
            f"rules that see no image: {_baselines(summary)}",
            f"chosen on these patients, so its score is optimistic; {opened_text(summary.openings)} · "
            "not for clinical use",
        ]
    )


def _leaky_text(summary: Summary) -> str:
    """What scores on patients that were trained on are good for."""
    rule = summary.rival
    rival = f"; the best rule that sees no image, {rule.name}, has {rule.score:.3f} (leaky)" if rule else ""
    return "\n".join(
        [
            "LEAKY: split by slice, so the model has seen other slices of the patients that it is judged on",
            f"best trial {summary.trial} ({summary.backbone}): leaky {summary.metric} {summary.score:.3f} on "
            f"{summary.slices} slices of {summary.patients} patients{rival}",
            "no interval, no comparison and no confirmation is worth making: the run shows what the leak does, and is "
            "no result · not for clinical use",
        ]
    )


def _others(summary: Summary) -> str:
    others, tied = summary.trials - 1, len(summary.tied)
    if not others:
        return "none has finished"
    if not summary.reliable:
        return f"none of {others} can be told from it: that needs at least {MIN_PATIENTS} validation patients"
    if not tied:
        return f"it is better than all {others} (paired over patients, Holm-corrected)"
    names = ", ".join(summary.tied[:5]) + (", …" if tied > 5 else "")
    which = f"{tied} of {others} cannot be told from it and share its rank"
    return f"{which} (paired over patients, Holm-corrected): {names}"


def _baselines(summary: Summary) -> str:
    rival = summary.rival
    if rival is None:
        return "not judged yet; name the run's data with --data"
    head = f"the best, {rival.name}, has {rival.score:.3f} · difference {rival.difference:+.3f}"
    if not summary.reliable:
        return f"{head}: shows nothing yet, an interval needs at least {MIN_PATIENTS} validation patients"
    head += f" (95 % {rival.low:+.3f} to {rival.high:+.3f})"
    if not summary.unbeaten:
        return f"{head}: it beats them all"
    names = ", ".join(summary.unbeaten)
    return f"{head}: it is NOT shown to beat {names}; more validation patients or better trials are needed"
