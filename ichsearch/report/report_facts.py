"""The sections of the report that list facts: failures, and how the run was made.

In: a `RunData`, the commands of this report. Out: a `Section` each.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ichsearch.data.split import TEST_FOLD, VALIDATION_FOLD, Split
from ichsearch.files import read_json
from ichsearch.report.page import Column, Row, Section, Table, number, words
from ichsearch.report.provenance import environment, read_commands
from ichsearch.report.run_data import RunData
from ichsearch.search.parameters import EFFECTS, SEARCHED
from ichsearch.search.run_folder import TrialRecord


def failures(data: RunData) -> Section:
    """The trials without a score, and why."""
    ended = [record for record in data.failed if record.status == "failed"]
    running = len(data.failed) - len(ended)
    columns = [Column(name, words=True) for name in ("trial", "reason", "backbone")]
    columns += [Column(name) for name in ("batch", "size", "lr", "epochs")]
    notes = [] if ended else ["No trial failed."]
    if running:
        notes.append(f"{running} had not ended when this was drawn.")
    rows = [_failure(record) for record in ended]
    tables = [Table("Trials without a score", columns, rows, sortable=True), _reasons(ended)] if ended else []
    return Section(
        "failures",
        "Failures",
        "A reason that strikes one backbone or one batch size alone tells what to leave out of the space.",
        notes=notes,
        tables=tables,
    )


def _failure(record: TrialRecord) -> Row:
    config = record.config
    cells = [words(record.trial), words(record.reason), words(config["backbone"])]
    forms = {"batch_size": "d", "size": "d", "lr": ".2g", "epochs": "d"}
    return Row([*cells, *(number(config[name], form) for name, form in forms.items())])


def _reasons(records: Sequence[TrialRecord]) -> Table:
    counts = Counter((record.reason.partition(":")[0], record.config["backbone"]) for record in records)
    rows = [
        Row([words(reason), words(backbone), number(count, "d")]) for (reason, backbone), count in counts.most_common()
    ]
    return Table(
        "By reason and backbone", [Column("reason", words=True), Column("backbone", words=True), Column("trials")], rows
    )


def provenance(data: RunData, commands: Sequence[str]) -> Section:
    """Data, environment and commands: what it takes to do it again."""
    noted = read_commands(data.folder)
    made_with = _facts("Environment", _told(noted[0] if noted else environment()))
    made = [f"{entry['command']}   # {entry['when']}" for entry in noted]
    return Section(
        "made",
        "How this was made",
        "The same search again takes the run's space.yaml, shards with the same fingerprint, and these versions.",
        tables=[_facts("Data", _data_facts(data)), made_with, _best(data)],
        commands=[
            *made,
            *(command for command in commands if command not in {entry["command"] for entry in noted}),
            _again(data),
        ],
    )


def _again(data: RunData) -> str:
    """The command that makes the same search; a phantom cohort is drawn anew."""
    if data.folder.leaks:
        return "ichsearch run --space PAPER_FILE --data SHARDS --out NEW_FOLDER   # a space of its own may not leak"
    if data.folder.phantom.is_dir():
        return "ichsearch run --space space.yaml --out NEW_FOLDER"
    return (
        f"ichsearch run --space space.yaml --data SHARDS --out NEW_FOLDER   # SHARDS: {_split(data).fingerprint[:16]}"
    )


def _split(data: RunData) -> Split:
    return Split.model_validate(read_json(data.folder.split))


def _data_facts(data: RunData) -> dict[str, str]:
    split = _split(data)
    folds = Counter(split.patients.values())
    train = sum(count for fold, count in folds.items() if fold > VALIDATION_FOLD)
    dealt = {
        "patients to train on": f"{train:,}",
        "patients to validate on": f"{folds[VALIDATION_FOLD]:,}",
        "patients of the test fold": f"{folds[TEST_FOLD]:,}",
    }
    facts = {
        "fingerprint of the shards": split.fingerprint,
        **({"split": "by slice, LEAKY: the same patients on both sides"} if split.leaks else dealt),
        "seed of the split": str(split.seed),
        "too rare to be judged": ", ".join(f"{name} ({count} patients)" for name, count in split.unreliable.items())
        or "none",
    }
    if data.shards is not None:
        counts = data.manifest.counts
        facts |= {"slices": f"{counts.ok:,}", "labelled slices": f"{counts.labelled:,}"}
    return facts


def _told(entry: dict[str, Any]) -> dict[str, str]:
    """The environment of the last command that the run has noted, or of this one."""
    libraries = entry["libraries"]
    return {
        "ichsearch": entry["ichsearch"],
        "Python": entry["python"],
        **libraries,
        "machine": f"{entry['machine']}, {entry['cores']} cores",
        "GPUs": ", ".join(entry["gpus"]) or "none",
    }


def _facts(title: str, facts: dict[str, str]) -> Table:
    rows = [Row([words(name), words(value)]) for name, value in facts.items()]
    return Table(title, [Column("what", words=True), Column("value", words=True)], rows)


def _best(data: RunData) -> Table:
    config = data.best.record.config
    idle = {name for name, effect in EFFECTS.items() if not effect.holds(config[effect.of])}
    shown = {name: str(config[name]) for name in ("task", *SEARCHED, "epochs", "seed") if name not in idle}
    shown["lr"] = f"{config['lr']:.4g}"
    return _facts(f"Best trial, {data.best.name}", shown | {"weights": data.best.record.weights})
