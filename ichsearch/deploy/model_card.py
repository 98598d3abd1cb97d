"""The model card: what a model was made of and for, and how it did; the items that CLAIM asks a report of.

In: a run folder, what was exported of it, its shards if they are at hand. Out: Markdown.
Source: Mongan et al., "Checklist for Artificial Intelligence in Medical Imaging (CLAIM)", Radiology: AI 2020.
"""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined

from ichsearch import __version__
from ichsearch.data.split import FOLDS, Split
from ichsearch.deploy.ensemble_record import read_ensemble
from ichsearch.deploy.evaluation_record import Evaluation
from ichsearch.deploy.exported_record import ExportedRecord
from ichsearch.deploy.onnx_graph import LARGEST_DIFFERENCE
from ichsearch.files import read_json
from ichsearch.report.bootstrap import MIN_PATIENTS, RESAMPLES, Interval
from ichsearch.report.confirmation import confirmations, opened_text
from ichsearch.report.inspect_cohort import read_metadata
from ichsearch.report.provenance import read_commands
from ichsearch.report.statistics import Intervals, intervals, read_predictions
from ichsearch.search.openings import read_openings
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space_file import load_space
from ichsearch.shards.manifest import Manifest, read_manifest
from ichsearch.train.trial import read_result

TEMPLATE: Final = "model_card.md.j2"
UNKNOWN: Final = "not known here: the run's shards were not at hand (--data)"
LEVELS: Final = {
    "slice": "given per slice",
    "series": "given per series and counted for all its slices",
    "study": "given per study and counted for all its slices",
    "patient": "given per patient and counted for all slices",
    None: "none",
}


def model_card(folder: RunFolder, record: ExportedRecord, validation: Path, shards: Path | None) -> str:
    """The card of an exported model.

    Args:
        folder: the run's.
        record: what was exported.
        validation: the model's predictions of the validation slices.
        shards: the run's; None leaves out what they would tell.
    """
    predictions, split = read_predictions(validation), Split.model_validate(read_json(folder.split))
    scores = intervals(predictions)
    manifest = read_manifest(shards) if shards else None
    table = read_metadata(shards, manifest) if shards and manifest else None
    return _rendered(
        name=_plain(record.run),
        verdict=_verdict(folder, is_ensemble=len(record.members) > 1 or record.flip),
        record=record,
        bound=LARGEST_DIFFERENCE,
        resamples=f"{RESAMPLES:,}",
        labels=record.labels,
        members=[_member(folder, record, place) for place in range(len(record.members))],
        data=_cohort(folder, shards) | _data(manifest, table),
        label_level=LEVELS[manifest.label_level] if manifest else UNKNOWN,
        fingerprint=split.fingerprint,
        split_seed=split.seed,
        folds=list(_folds(split, table, record.labels)),
        unreliable=[label for label in split.unreliable if label in record.labels],
        validation={"slices": len(predictions.slices), "patients": len(predictions.patients)},
        metrics=[_metrics(scores, label) for label in record.labels],
        log_loss=_told(scores["log_loss"]),
        test=_test(folder, record),
        thresholds=list(_thresholds(record)),
        limits=_limits(record, len(predictions.patients), table),
        provenance=_provenance(folder),
        weights=[member.weights for member in record.members],
    )


def _rendered(**facts: Any) -> str:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701 - Markdown
    template = environment.from_string(files("ichsearch.deploy").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(**facts).rstrip() + "\n"


def _plain(text: str) -> str:
    """Text that is neither a table's border nor markup."""
    return "".join(" " if letter in "|<>`\r\n" else letter for letter in text)


def _verdict(folder: RunFolder, *, is_ensemble: bool) -> str:
    """What the run's summary says of its best trial, if it has one, and what an ensemble gains over it."""
    known = read_json(folder.summary) if folder.summary.is_file() else {}
    told: list[str] = []
    if known.keys() >= {"trial", "trials", "tied", "unbeaten", "rival"}:
        told.append(f"The search's best of {known['trials']} trials is {known['trial']}.")
        if known["tied"]:
            told.append(f"{len(known['tied'])} others cannot be told from it.")
        told.append(_against_rules(known))
    gain = read_ensemble(folder).gain if is_ensemble else None
    if gain is not None:
        told.append(
            f"The ensemble is {gain.value:+.3f} better than its best member on the validation patients, on whom it was "
            "chosen: **not shown to be a gain on others**."
        )
    return " ".join(told)


def _against_rules(summary: dict[str, Any]) -> str:
    if summary["rival"] is None:
        return "It was not held against rules that see no image."
    if summary["unbeaten"]:
        return f"**It is not shown to beat rules that see no image: {', '.join(summary['unbeaten'])}.**"
    return "It beats all four rules that see no image."


def _member(folder: RunFolder, record: ExportedRecord, place: int) -> dict[str, Any]:
    member = record.members[place]
    trial, result = folder.record(member.trial), read_result(folder.trial(member.trial))
    assert trial is not None, "an exported trial has a record"
    assert result is not None, "an exported trial has finished"
    start = "ImageNet weights" if trial.weights == "pretrained" else "random weights"
    return {**member.model_dump(), "parameters_m": result.parameters_m, "epochs": trial.epochs, "start": start}


def _cohort(folder: RunFolder, shards: Path | None) -> dict[str, str]:
    """What the data are, where the run itself has made them."""
    own = shards is not None and shards.is_relative_to(folder.phantom.resolve())
    return (
        {"cohort": "**synthetic**: ichsearch's phantom, no patients; it shows that the pipeline works"} if own else {}
    )


def _data(manifest: Manifest | None, table: pd.DataFrame | None) -> dict[str, str]:
    if manifest is None or table is None:
        return {"data": UNKNOWN}
    counts = manifest.counts
    positives = ", ".join(f"{label} {number:,}" for label, number in counts.positives.items())
    return {
        "patients, studies, series": f"{counts.patients:,}, {counts.studies:,}, {counts.series:,}",
        "slices": f"{counts.ok:,}, of which {counts.labelled:,} labelled",
        "positive slices": positives,
        "files left out": f"{counts.quarantined:,} of {counts.found:,} as unusable, {counts.duplicate:,} duplicates",
        "slice thickness": _range(table["slice_thickness_mm"], "mm"),
        "pixel spacing": _range(table["pixel_spacing_row_mm"], "mm"),
        "gantry tilt": _range(table["tilt_degrees"], "degrees"),
        "tube voltage": _range(table["tube_voltage_kv"], "kV"),
        "age, sex, site, scanner": "not read: headers are not used beyond geometry and acquisition",
    }


def _range(column: "pd.Series[Any]", unit: str) -> str:
    known = column.dropna().to_numpy(np.float64)
    if not len(known):
        return "not in the files"
    low, middle, high = np.percentile(known, [0, 50, 100])
    return f"median {middle:.3g} {unit} ({low:.3g} to {high:.3g}; known of {len(known):,} slices)"


def _folds(split: Split, table: pd.DataFrame | None, labels: list[str]) -> Iterator[list[str]]:
    """A row for each use of the folds: patients, and positive slices of each label of all."""
    uses = {"training": range(2, FOLDS), "validation": range(1, 2), "test": range(1)}
    fold_of = None if table is None else split.fold_of(table)
    for use, folds in uses.items():
        patients = sum(fold in folds for fold in split.patients.values())
        row = [use, f"{patients:,}"]
        for label in labels:
            if table is None or fold_of is None:
                row.append("")
                continue
            own = table.loc[np.isin(fold_of, list(folds)), label].dropna()
            row.append(f"{int(own.sum()):,} of {len(own):,} slices")
        yield row


def _metrics(scores: Intervals, label: str) -> list[str]:
    names = [f"{level}{name}_{label}" for level in ("", "patient_") for name in ("auroc", "average_precision")]
    return [label, *(_told(scores.get(name)) for name in names)]


def _told(interval: Interval | None) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]" if interval else "undefined"


def _test(folder: RunFolder, record: ExportedRecord) -> str:
    """What is known of patients that had no say in the choice: of replays of the same configuration."""
    opened = f"{opened_text(len(read_openings(folder))).capitalize()}."
    known = confirmations(folder)
    lines = [
        f"Trial {trial} trained anew from {len(known[trial].scores)} fresh seeds: {known[trial].metric} "
        f"{_told(known[trial].test)} for their mean prediction on {known[trial].patients} test patients; "
        "these are other weights of the same recipe."
        for trial in (member.trial for member in record.members)
        if trial in known and known[trial].patients
    ]
    return "\n".join([opened, *lines, *_evaluations(folder, record)])


def _evaluations(folder: RunFolder, record: ExportedRecord) -> list[str]:
    """What `ichsearch evaluate` has found of these very models, beside the validation patients."""
    models = [(member.trial, member.weight) for member in record.members]
    found = [Evaluation.model_validate(read_json(path)) for path in sorted(folder.evaluations.glob("*.json"))]
    own = [
        one
        for one in found
        if list(zip(one.trials, one.weights, strict=True)) == models
        and one.flip == record.flip
        and one.part != "validation"
    ]
    if not own:
        return ["External validation: none recorded here."]
    return [
        f"Evaluated on {'the test fold' if one.part == 'test' else f'other data, fingerprint {one.fingerprint[:12]}'}"
        f"{', smoothed' if one.smoothed else ''}: {one.slices:,} slices of {one.patients:,} patients, "
        + ", ".join(f"AUROC {label} {_told(one.scores.get(f'auroc_{label}'))}" for label in record.labels)
        + "."
        for one in own
    ]


def _thresholds(record: ExportedRecord) -> Iterator[list[str]]:
    for label, points in record.thresholds.items():
        for rule, point in points.items():
            if point is None:
                yield [label, rule, "undefined", "", ""]
            else:
                figures = (point.sensitivity, point.specificity)
                yield [label, rule, f"{point.threshold:.4g}", *(f"{figure:.3f}" for figure in figures)]


def _limits(record: ExportedRecord, patients: int, table: pd.DataFrame | None) -> list[str]:
    undefined = [label for label, points in record.thresholds.items() if not any(points.values())]
    limits = [
        f"Judged on {patients} validation patients"
        + (": too few for intervals to mean much." if patients < MIN_PATIENTS else ", who also chose it."),
        "Probabilities are as calibrated as on those patients; another prevalence needs thresholds of its own.",
        "A slice is judged alone or with its two neighbours, never with the whole study or with what else is known of "
        "the patient.",
        "Not examined: age and sex groups, post-operative heads, contrast, motion beyond what the data hold, "
        "other pathology than the labels.",
    ]
    if undefined:
        limits.append(f"No thresholds for {', '.join(undefined)}: the validation patients show one class only.")
    if table is not None and table["slice_thickness_mm"].nunique() == 1:
        limits.append("All slices of the data have one thickness.")
    return limits


def _provenance(folder: RunFolder) -> dict[str, str]:
    commands = read_commands(folder)
    made = {"exported by": f"ichsearch {__version__}", "metric searched by": load_space(folder.space).metric}
    if commands:
        last = commands[-1]
        libraries = ", ".join(f"{name} {version}" for name, version in last["libraries"].items())
        made |= {"run on": f"{last['when']}, Python {last['python']}, {last['machine']}", "libraries": libraries}
    return made
