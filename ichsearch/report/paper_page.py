"""`paper.html`: the paper's runs done again, what its figures are worth, and what is done otherwise here.

In: a paper's folder and its shards. Out: one page that needs no other file and no network, and `paper.csv`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd

from ichsearch.data.split import LEAKY
from ichsearch.errors import ConfigError
from ichsearch.files import write_text
from ichsearch.labels import ANY
from ichsearch.report.baselines import baseline_intervals
from ichsearch.report.bootstrap import MIN_PATIENTS
from ichsearch.report.chart import interval_mark
from ichsearch.report.inspect_cohort import read_metadata
from ichsearch.report.page import Cell, Column, Row, Section, Table, number, words
from ichsearch.report.paper_results import ACCURACY, Difference, Judged, differences, judged_runs, write_csv
from ichsearch.report.provenance import environment, read_commands
from ichsearch.report.report import render_page
from ichsearch.report.scales import Scale, linear
from ichsearch.search.default_data import SHARDS
from ichsearch.search.paper_runs import PHANTOM, Plan, not_reproduced, read_plan
from ichsearch.search.run_folder import RunFolder
from ichsearch.shards.manifest import Manifest, read_manifest
from ichsearch.shards.metadata import lost_to_filter

PAGE: Final = "paper.html"
INTERVAL: Final = "95 %"
FILTERS: Final = (0.02, 0.2)
COLUMNS: Final = (
    Column("run", words=True),
    Column("backbone", words=True),
    Column("weights", "what the backbone started from", words=True),
    Column("precision", "auto: float32 on a CPU, bfloat16 or float16 on a GPU", words=True),
    Column("batch", "in the paper → here, where they differ"),
    Column("epochs", "in the paper → here, where they differ"),
    Column("px", "of an image's side, in the paper → here"),
    Column("paper", "the accuracy that it reports, of a leaky split"),
    Column("accuracy", "correct bits over all bits at probability 0.5, on the validation patients"),
    Column(INTERVAL, "interval over resampled patients; upright line: predicting nothing"),
    Column("nothing", "accuracy of predicting no haemorrhage anywhere, on the same slices"),
    Column("gain", "accuracy minus that"),
    Column(LEAKY, "accuracy of the same run with the paper's split: slices of one patient on both sides", words=True),
    Column("AUROC", "of any haemorrhage, or the mean over subtypes"),
    Column("slices", "of the validation patients"),
    Column("patients", "that these slices are of"),
)


class PaperResult(NamedTuple):
    """What a paper's runs came to."""

    page: Path
    table: pd.DataFrame
    verdict: list[str]


def write_paper(root: Path, data: Path | None) -> PaperResult:
    """Draw the page of a paper's folder and write its table; what has not finished is shown as that.

    Args:
        root: the folder.
        data: the shards that its runs are on; None for those of its own phantom cohort.

    Raises:
        ConfigError: these are others.
        DataError: a run's predictions, or the shards, cannot be read.
    """
    plan, shards = read_plan(root), data or root / PHANTOM / SHARDS
    manifest = read_manifest(shards)
    if manifest.fingerprint != plan.fingerprint:
        raise ConfigError("--data must be the shards that the paper's runs are on, but holds others; name those")
    judged = judged_runs(root, plan)
    table, pairs = write_csv(root, plan, judged), differences(judged)
    verdict = [*_not_reproduced(plan, manifest), *_verdict(judged, pairs)]
    sections = [
        _runs(table),
        *([_differences(pairs)] if pairs else []),
        _deviations(root, plan, shards, judged),
        _made(root, plan),
    ]
    write_text(root / PAGE, render_page(plan.name, verdict, _facts(plan, manifest, judged), sections))
    return PaperResult(root / PAGE, table, verdict)


def _not_reproduced(plan: Plan, manifest: Manifest) -> list[str]:
    why = not_reproduced(plan, manifest)
    return ["This is no reproduction of the paper.", *why] if why else []


def _facts(plan: Plan, manifest: Manifest, judged: dict[str, Judged]) -> dict[str, str]:
    return {
        "runs finished": f"{len(judged)} of {len(plan.runs)}",
        "scale": f"{plan.scale:g}",
        "slices": f"{manifest.counts.labelled:,}",
        "with haemorrhage": f"{manifest.counts.positives[ANY]:,}",
        "patients": f"{manifest.counts.patients:,}",
        "crop box per": manifest.settings.crop,
    }


def _verdict(judged: dict[str, Judged], pairs: Sequence[Difference]) -> Iterator[str]:
    """What a person should take from the runs, and what not."""
    own = [one for one in judged.values() if not one.run.leaky]
    for task in dict.fromkeys(one.run.task for one in own):
        group = [one for one in own if one.run.task == task]
        nothing, slices = group[0].nothing.value, len(group[0].given.slices)
        above = sum(one.accuracy.value > nothing for one in group)
        yield (
            f"{_task(task)}: predicting nothing scores {nothing:.3f} on {slices:,} validation slices "
            f"of {len(group[0].given.patients):,} patients; {above} of {len(group)} runs score more."
        )
    few = [pair for pair in pairs if not pair.reliable]
    shown = sum(pair.shown for pair in pairs)
    if few:
        yield (
            f"{len(few)} of {len(pairs)} comparisons show nothing: fewer than {MIN_PATIENTS} validation patients have "
            "slices of that task."
        )
    if len(few) < len(pairs):
        yield (
            f"{shown} of {len(pairs) - len(few)} pairs of runs of one task "
            f"{'is' if shown == 1 else 'are'} shown to differ (paired over patients, Holm-corrected)."
        )
    if twins := [one for one in judged.values() if one.run.leaky]:
        told = ", ".join(f"{one.run.entry} {one.accuracy.value:.3f} ({LEAKY})" for one in twins)
        yield f"With the paper's split by slice: {told}. Such figures are no result."


def _task(task: str) -> str:
    return "Binary" if task == "any" else "Multi-label, slices with haemorrhage" if task == "positives" else task


def _runs(table: pd.DataFrame) -> Section:
    rows = table.to_dict("records")
    scale = linear(table[["accuracy_low", "accuracy", "accuracy_high", "all_zero"]].to_numpy(float).ravel().tolist())
    drawn = f"{INTERVAL}, {scale.low:.2g} to {scale.high:.2g}"
    columns = [replace(column, name=drawn) if column.name == INTERVAL else column for column in COLUMNS]
    return Section(
        "runs",
        "The runs",
        "Most bits are 0, so correct bits over all bits flatter: a run is worth what it has above predicting nothing.",
        notes=[
            "On the paper's slices predicting nothing scores 0.725 in the multi-label runs. Figures are by patient; "
            f"the column {LEAKY} alone is not, and beside it stands what predicting nothing scores on those slices. "
            f"No interval is drawn for fewer than {MIN_PATIENTS} patients."
        ],
        tables=[Table("The runs", columns, [_row(row, scale) for row in rows])],
    )


def _row(row: dict[Any, Any], scale: Scale) -> Row:
    leaky = row["leaky_accuracy"]
    cells = [
        words(row["run"]),
        words(row["backbone"] if row["status"] == "finished" else row["status"]),
        words(str(row["weights"] or "").partition(" (")[0]),
        words(row["precision"]),
        *(_changed(row[f"{name}_paper"], row[name]) for name in ("batch_size", "epochs", "size")),
        number(row["reported"], ".4f"),
        number(row["accuracy"]),
        _interval(row, scale),
        number(row["all_zero"]),
        number(row["minus_all_zero"], "+.3f"),
        Cell("–") if pd.isna(leaky) else words(f"{leaky:.3f} {LEAKY} (nothing {row['leaky_all_zero']:.3f})", "bad"),
        number(row["auroc"]),
        number(row["slices"], ",.0f"),
        number(row["patients"], ",.0f"),
    ]
    return Row(cells)


def _changed(paper: int, here: int) -> Cell:
    return Cell(str(here) if paper == here else f"{paper} → {here}", float(here))


def _interval(row: dict[Any, Any], scale: Scale) -> Cell:
    low, high = row["accuracy_low"], row["accuracy_high"]
    if pd.isna(low) or pd.isna(high):
        return Cell("–")
    return Cell(interval_mark(scale, float(low), float(row["accuracy"]), float(high), [float(row["all_zero"])]))


def _differences(pairs: Sequence[Difference]) -> Section:
    columns = [Column("run", words=True), Column("minus", words=True), Column("accuracy"), Column("95 %"), Column("p")]
    columns += [Column("they differ", words=True)]
    return Section(
        "differences",
        "Whether any two differ",
        "Two runs that are not shown to differ are no ranking, whichever stands higher.",
        notes=[
            "Accuracy of two runs on the same slices, resampled together over patients; p is corrected for the pairs "
            "of one task (Holm). The paper's 91.7 and 91.8 % have a standard error of at least 0.09 points each, after "
            "14 and 19 epochs: no difference."
        ],
        tables=[Table("Differences", columns, [_pair(pair) for pair in pairs], sortable=True)],
    )


def _pair(pair: Difference) -> Row:
    interval, reliable = pair.interval, pair.reliable
    ends = f"{interval.low:+.3f} to {interval.high:+.3f}" if reliable else "–"
    verdict = ("yes" if pair.shown else "not shown") if reliable else f"fewer than {MIN_PATIENTS} patients"
    p = number(pair.p_holm if reliable else None, ".2g")
    return Row([words(pair.first), words(pair.second), number(interval.value, "+.3f"), Cell(ends), p, words(verdict)])


def _deviations(root: Path, plan: Plan, shards: Path, judged: dict[str, Judged]) -> Section:
    manifest = read_manifest(shards)
    return Section(
        "deviations",
        "What is done otherwise, and what the paper's figures are worth",
        "Each of these moves a figure; none is hidden in a number above.",
        notes=[
            *not_reproduced(plan, manifest),
            _weights(judged),
            _split(plan),
            "Three folds of five train, one validates, one stays untouched; the paper trained on 80 % of the slices.",
            *_filter(shards, manifest),
            _crop(manifest),
            _forest(root, judged),
            "Epochs, batches and learning rates differ between the paper's runs, 6 to 19 epochs: its rows do not "
            "compare architectures. They are run here as they are; `architectures.yaml` compares on equal terms.",
            "Learning rates are a consensus of three suggestions of the range test, where the file gives none.",
            "One cycle spans all epochs, or two where a body is frozen first.",
            f"The epoch with the best {ACCURACY} on the validation patients counts, which flatters a little.",
        ],
    )


def _weights(judged: dict[str, Judged]) -> str:
    scratch = [name for name, one in judged.items() if one.record.weights.startswith("scratch (")]
    if not scratch:
        return ""
    return f"No pretrained weights could be had: {', '.join(scratch)} began from random ones, and no body was frozen."


def _split(plan: Plan) -> str:
    twins = ", ".join(run.entry for run in plan.runs if run.leaky) or "no run"
    return (
        "The paper split by slice, so slices of one patient stand on both sides. Here patients are split. To show what "
        f"the leak does, these run a second time by slice, marked {LEAKY}: {twins}; more would cost what the runs cost."
    )


def _filter(shards: Path, manifest: Manifest) -> Iterator[str]:
    table = read_metadata(shards, manifest)
    lost = {share: lost_to_filter(table, share)["positives_lost"][ANY] for share in FILTERS}
    yield (
        "The paper says that slices with less than 20 % brain were removed; its notebooks removed those below 2 %, as "
        "`paper.yaml` does, of training slices alone: all slices of the validation patients are judged. Of the "
        f"{manifest.counts.positives[ANY]:,} slices with haemorrhage of these shards, 20 % would lose {lost[0.2]:,}, "
        f"2 % loses {lost[0.02]:,}; of the paper's 97,102 they lose 25,206 and 61."
    )


def _crop(manifest: Manifest) -> str:
    if manifest.settings.crop == "slice":
        return "Each slice has a crop box of its own, as in the paper (`preprocess --crop slice`)."
    return "All slices of a series share one crop box; the paper cropped each by itself (`preprocess --crop slice`)."


def _forest(root: Path, judged: dict[str, Judged]) -> str:
    told = (
        "The paper's Random Forest on metadata scores 50 %, which is chance: labels sorted by ID were never joined "
        "with metadata in the order of files."
    )
    for name, one in judged.items():
        found = baseline_intervals(RunFolder(root / name)).get("metadata", {}).get(ACCURACY)
        if found and one.run.task == "any" and not one.run.leaky:
            return (
                f"{told} Joined, it scores {found.value:.3f} here; predicting nothing scores {one.nothing.value:.3f}."
            )
    return told


def _made(root: Path, plan: Plan) -> Section:
    noted = [entry for run in plan.runs for entry in read_commands(RunFolder(root / run.name))]
    made = noted[0] if noted else environment()
    facts = {
        "ichsearch": made["ichsearch"],
        "Python": made["python"],
        **made["libraries"],
        "machine": f"{made['machine']}, {made['cores']} cores",
        "GPUs": ", ".join(made["gpus"]) or "none",
        "fingerprint of the shards": plan.fingerprint,
    }
    rows = [Row([words(name), words(value)]) for name, value in facts.items()]
    return Section(
        "made",
        "How this was made",
        "Each run has a folder of its own beside this page, with its leaderboard and its report.",
        tables=[Table("Environment", [Column("what", words=True), Column("value", words=True)], rows)],
        commands=list(dict.fromkeys(entry["command"] for entry in noted)),
    )
