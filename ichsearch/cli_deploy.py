"""The verbs that put a run's winner to use; in the manner of `cli.py`, which they are plain verbs of.

In: arguments. Out: files, and lines that say where they are.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from ichsearch.cli_console import err, say
from ichsearch.errors import ConfigError

app = typer.Typer()
ONNX_LIBRARIES: Final = ("onnx", "onnxscript", "onnxruntime")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
RunData = Annotated[Path | None, typer.Option(help="The run's folder of shards; not for a run on its own phantom.")]
Trial = Annotated[str | None, typer.Option(help="Which trial; default the best.")]
UseEnsemble = Annotated[bool, typer.Option("--ensemble", help="What `ichsearch ensemble` has chosen instead.")]


@app.command()
def ensemble(run_folder: Run, data: RunData = None) -> None:
    """Choose which trials of a run predict together, on its validation patients, and say what each of them gains."""
    from ichsearch.cli_progress import progress
    from ichsearch.deploy.ensemble import choose_ensemble, ensemble_text
    from ichsearch.report.report import shards_of
    from ichsearch.search.run_folder import RunFolder

    folder = RunFolder(run_folder.resolve())
    with progress(err) as show:
        chosen = choose_ensemble(folder, shards_of(folder, data), show)
    for line in ensemble_text(chosen):
        say(line)
    say(f"kept in {folder.ensemble}; use it with --ensemble")


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

    from ichsearch.deploy.export import check_target, export_model
    from ichsearch.deploy.models import load_predictor
    from ichsearch.report.report import shards_of
    from ichsearch.search.run_folder import RunFolder

    check_target(target)
    folder, cpu = RunFolder(run_folder.resolve()), torch.device("cpu")
    predictor = load_predictor(folder, trial, ensemble=use_ensemble, shards=data, device=cpu, exact=True)
    record = export_model(folder, predictor, shards_of(folder, data), target).record
    names = ", ".join(f"{member.trial} ({member.backbone})" for member in record.members)
    say(f"{names}: ONNX differs from torch by {record.onnx.max_difference:.1e} at most")
    say(f"{target}: read MODEL_CARD.md; python {target}/predict.py DICOM_DIR · not for clinical use")
