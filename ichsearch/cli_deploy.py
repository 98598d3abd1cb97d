"""The verbs that put a run's winner to use; in the manner of `cli.py`, which they are plain verbs of.

In: arguments. Out: files, and lines that say where they are.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.console import Console

from ichsearch.cli_console import err, say
from ichsearch.errors import ConfigError
from ichsearch.terminal import literal

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer()
ONNX_LIBRARIES: Final = ("onnx", "onnxscript", "onnxruntime")

Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder or URI of a run.")]
RunData = Annotated[str | None, typer.Option(help="The run's folder of shards; not for a run on its own phantom.")]
Trial = Annotated[str | None, typer.Option(help="Which trial; default the best.")]
UseEnsemble = Annotated[bool, typer.Option("--ensemble", help="What `ichsearch ensemble` has chosen instead.")]


@app.command()
def ensemble(run_folder: Run, data: RunData = None) -> None:
    """Choose which trials of a run predict together, on its validation patients, and say what each of them gains."""
    from ichsearch.cli_progress import progress
    from ichsearch.deploy.ensemble import choose_ensemble, ensemble_text
    from ichsearch.report.report import shards_of
    from ichsearch.search.run_folder import opened

    with opened(run_folder) as folder, progress(err) as show:
        chosen = choose_ensemble(folder, shards_of(folder, data), show)
        kept = folder.shown(folder.ensemble)
    for line in ensemble_text(chosen):
        say(line)
    say(f"kept in {kept}; use it with --ensemble")


@app.command()
def export(
    run_folder: Run,
    target: Annotated[Path, typer.Option("--out", help="New folder.")],
    trial: Trial = None,
    use_ensemble: UseEnsemble = False,
    data: RunData = None,
) -> None:
    """Write a model as ONNX that takes HU, with its weights, thresholds, a model card, and a script that predicts."""
    if missing := [name for name in ONNX_LIBRARIES if find_spec(name) is None]:
        raise ConfigError(f"an export needs {', '.join(missing)}; pip install 'ichsearch[export]'")
    import torch

    from ichsearch.data.cache import local_shards
    from ichsearch.deploy.export import export_model
    from ichsearch.deploy.models import load_predictor
    from ichsearch.deploy.targets import check_target
    from ichsearch.report.report import shards_of
    from ichsearch.search.run_folder import opened

    check_target(target)
    with opened(run_folder) as folder:
        own, cpu = local_shards(data) if data else None, torch.device("cpu")
        predictor = load_predictor(folder, trial, ensemble=use_ensemble, shards=own, device=cpu, exact=True)
        record = export_model(folder, predictor, shards_of(folder, data), target).record
    names = ", ".join(f"{member.trial} ({member.backbone})" for member in record.members)
    say(f"{names}: ONNX differs from torch by {record.onnx.max_difference:.1e} at most")
    say(f"{target}: read MODEL_CARD.md; python {target}/predict.py DICOM_DIR · not for clinical use")


@app.command()
def predict(
    run_folder: Run,
    dicom: Annotated[str, typer.Argument(metavar="DICOM_DIR", help="Folder or URI of DICOM files, searched below.")],
    table: Annotated[
        Path, typer.Option("--out", help="CSV, a row a slice; beside it <name>.studies.csv and <name>.quarantine.csv.")
    ] = Path("predictions.csv"),
    trial: Trial = None,
    use_ensemble: UseEnsemble = False,
    smooth: Annotated[bool, typer.Option("--smooth", help="Average each slice with its neighbours.")] = False,
    kaggle: Annotated[Path | None, typer.Option(help="Also a submission in the form of RSNA 2019.")] = None,
    overlays: Annotated[
        Path | None, typer.Option(help="New folder: Grad-CAM over each study's three highest slices, as PNG.")
    ] = None,
    data: RunData = None,
) -> None:
    """Predict the slices and studies of a folder of DICOM files with a run's model, preprocessed as the run's were."""
    from ichsearch.cli_progress import progress
    from ichsearch.data.cache import local_shards
    from ichsearch.deploy.models import load_predictor
    from ichsearch.deploy.outcome import Targets, outcome_text
    from ichsearch.deploy.predict import predict_folder
    from ichsearch.deploy.smoothing import smoothing_text
    from ichsearch.report.report import shards_of
    from ichsearch.search.run_folder import opened

    targets = Targets(table, kaggle, overlays)
    with opened(run_folder) as folder:
        own = local_shards(data) if data else None
        predictor = load_predictor(folder, trial, ensemble=use_ensemble, shards=own)
        gains = smoothing_text(folder, predictor, shards_of(folder, data)) if smooth else ""
    with progress(err) as show:
        outcome = predict_folder(predictor, dicom, targets, smooth=smooth, on_progress=show)
    for line in (gains, *outcome_text(outcome, targets, predictor.configs[0].task)):
        if line:
            say(line)


@app.command()
def evaluate(
    run_folder: Run,
    shards: Annotated[str, typer.Option("--data", help="Folder or URI of labelled shards, made as the run's were.")],
    part: Annotated[
        Literal["all", "validation", "test"],
        typer.Option("--split", help="Of the run's own data: validation, or test, which is noted; of others: all."),
    ] = "all",
    trial: Trial = None,
    use_ensemble: UseEnsemble = False,
    smooth: Annotated[bool, typer.Option("--smooth", help="Average each slice with its neighbours.")] = False,
    run_data: Annotated[str | None, typer.Option(help="The run's own: its patients are found by image, too.")] = None,
) -> None:
    """Judge a run's model on labelled slices, with intervals over patients, at thresholds chosen on validation."""
    from ichsearch.data.cache import local_shards
    from ichsearch.deploy.evaluate import evaluate as judge
    from ichsearch.deploy.evaluate import own_shards
    from ichsearch.deploy.evaluation_record import evaluation_text, score_rows, threshold_rows
    from ichsearch.deploy.models import load_predictor
    from ichsearch.search.run_folder import opened

    judged_on, command = local_shards(shards), ["ichsearch", *sys.argv[1:]]
    with opened(run_folder) as folder:
        own = own_shards(folder, judged_on, run_data)
        predictor = load_predictor(folder, trial, ensemble=use_ensemble, shards=own)
        judged, path = judge(folder, predictor, judged_on, part=part, smooth=smooth, run_shards=own, command=command)
        kept = folder.shown(path)
    wide = Console(width=250)  # lines may wrap, but cells do not
    wide.print(_table(f"{', '.join(judged.trials)} on {shards.rstrip('/').rpartition('/')[2]}", score_rows(judged)))
    wide.print(_table("at the thresholds of the validation patients", threshold_rows(judged)))
    for line in evaluation_text(judged):
        say(line)
    say(f"kept in {kept} for all labels, the predictions in {path.with_suffix('.parquet').name} · not for clinical use")


def _table(title: str, rows: list[list[str]]) -> "Table":
    from rich.table import Table

    header, *others = rows
    table = Table(*header, title=literal(title), title_justify="left")
    for row in others:
        table.add_row(*map(literal, row))
    return table
