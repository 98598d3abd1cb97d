"""The command line: each verb parses, calls one library function, prints.

Libraries that take seconds to import are imported at the top of the verb that needs them, so that `--help` is instant.
"""

import atexit
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console

from ichsearch import __version__, cli_cluster, cli_deploy
from ichsearch.cli_console import err, out, say
from ichsearch.cli_exit import exit_codes
from ichsearch.cli_signals import leave_at_once, stopped_by_signals
from ichsearch.errors import ConfigError, DataError

app = typer.Typer(
    name="ichsearch",
    help="Search backbones and training recipes for detecting intracranial haemorrhage on CT. Not for clinical use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_deploy.app)
app.add_typer(cli_cluster.app)


def main() -> None:
    """Run the command line and end with the documented exit code."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")  # Ray prints on stdout that a worker died; we say it too
    atexit.register(leave_at_once)  # before Ray is imported, whose own comes first so
    with exit_codes(err), stopped_by_signals():
        app()


def _version(wanted: bool) -> None:
    if wanted:
        say(f"ichsearch {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def phantom(
    folder: Annotated[str, typer.Argument(metavar="OUT", help="New folder: OUT/dicom and OUT/stage_2_train.csv.")],
    patients: Annotated[int, typer.Option(min=1, max=100_000, help="Patients.")] = 60,
    slices: Annotated[int, typer.Option(min=1, max=256, help="Slices a patient.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Same seed and options, same bytes.")] = 0,
    hard: Annotated[bool, typer.Option("--hard", help="Subtle blood, and what misleads: calcium, motion.")] = False,
    prevalence: Annotated[
        Literal["half", "rsna"],
        typer.Option(help="Half of the patients bleed, or slices do as often as in RSNA 2019: 14.4 %."),
    ] = "half",
    even_position: Annotated[
        bool, typer.Option("--even-position", help="A slice's place in its series says nothing about its label.")
    ] = False,
) -> None:
    """Write a synthetic head-CT cohort as DICOM files in the RSNA 2019 form."""
    from ichsearch.cli_progress import progress
    from ichsearch.locations import disk_path
    from ichsearch.phantom import write_cohort

    target = disk_path(folder)
    with progress(err) as show:
        made = write_cohort(
            target, patients, slices, seed, hard=hard, prevalence=prevalence, even_position=even_position,
            on_progress=lambda done, total: show("patients", done, total),
        )  # fmt: skip
    say(f"{made.slices} slices of {made.patients} patients in {target}: "
        f"{made.bleeding_patients} patients bleed, {made.positive_slices} slices show it")  # fmt: skip


@app.command()
def preprocess(
    dicom: Annotated[str, typer.Argument(metavar="DICOM_DIR", help="Folder or URI of DICOM files, searched below.")],
    shards: Annotated[str, typer.Option("--out", help="Folder of shards or URI, new or to be gone on with.")],
    labels: Annotated[Path | None, typer.Option(help="Labels: RSNA 2019's, a column a label, or CQ500's.")] = None,
    size: Annotated[int, typer.Option(min=16, max=1024, help="Pixels of a stored slice's side.")] = 256,
    crop: Annotated[str, typer.Option(help="One crop box per `series`, or per `slice` as in the paper.")] = "series",
    strict: Annotated[bool, typer.Option(help="End with exit code 3 if any file was quarantined.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default RAY_ADDRESS, else this machine.")] = None,
) -> None:
    """Turn a folder of DICOM files into Parquet shards of slices in Hounsfield units."""
    from ichsearch.cli_counts import print_counts
    from ichsearch.cli_progress import progress
    from ichsearch.search.console import connecting
    from ichsearch.shards.address import choose_address
    from ichsearch.shards.preprocess import preprocess as run

    if crop not in ("series", "slice"):
        raise typer.BadParameter(f"--crop must be series or slice, but is {crop!r}")
    say(connecting(choose_address(address)))
    try:
        with progress(err) as show:
            manifest = run(
                dicom, shards, labels=labels, size=size, crop="slice" if crop == "slice" else "series",
                address=address, on_progress=show,
            )  # fmt: skip
    except KeyboardInterrupt:
        say(f"stopped; the shards that are whole are kept. To go on:\n  {shlex.join(_command())}")
        raise
    print_counts(manifest)
    say(f"shards in {shards}")
    if "://" not in shards:
        there, name = shlex.quote(shards), shlex.quote(Path(shards).absolute().name)
        say(f"look at them: ichsearch inspect {there}")
        cluster = f" --address {address}" if address else ""
        say(f"then: ichsearch run --space quickstart.yaml --data {there} --out runs/{name}{cluster}")
    if strict and manifest.counts.quarantined:
        raise DataError(
            f"--strict: no file may be quarantined, but {manifest.counts.quarantined} are; the others have "
            "their shards. Mend or remove those files, or leave --strict out"
        )


@app.command()
def inspect(
    location: Annotated[str, typer.Argument(metavar="SHARDS", help="Folder of shards.")],
    folder: Annotated[str | None, typer.Option("--out", help="Where the page goes; default SHARDS/inspect.")] = None,
) -> None:
    """Draw what a folder of shards holds: one HTML page for any browser, offline, and its pictures as PNG."""
    from ichsearch.locations import disk_path
    from ichsearch.report.inspect import write_inspection

    shards = disk_path(location).resolve()
    page = write_inspection(shards, shards / "inspect" if folder is None else disk_path(folder))
    say(f"{page}: open it in a browser")


@app.command("lr-find")
def lr_find(
    data: Annotated[str, typer.Option(help="Folder or URI of shards.")],
    backbone: Annotated[str, typer.Option(help="Any model of timm or torchvision.")],
    batch_size: Annotated[int, typer.Option(min=2)] = 32,
    size: Annotated[int, typer.Option(min=16)] = 256,
    channels: Annotated[str, typer.Option(help="hu, windows, neighbours or hist.")] = "windows",
    steps: Annotated[
        int | None, typer.Option(min=20, help="Training steps from the lowest to the highest rate; default 100.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where the curve goes, as JSON and PNG.")] = Path("lr_finder"),
) -> None:
    """Find a learning rate for a backbone from scratch: one short run over rising rates, its curve, one suggestion."""
    from pydantic import ValidationError

    from ichsearch.data.cache import local_shards, open_slices
    from ichsearch.data.channels import CHANNELS
    from ichsearch.data.split import make_split
    from ichsearch.files import write_json
    from ichsearch.model.backbones import check_backbone
    from ichsearch.report.lr_plot import draw_curve
    from ichsearch.search.console import lr_line
    from ichsearch.search.run_folder import curve_name
    from ichsearch.train.config import InputConfig, TrialFailedError
    from ichsearch.train.lr_finder import STEPS, find_lr

    try:
        config = InputConfig.model_validate(
            {"backbone": backbone, "batch_size": batch_size, "size": size, "channels": channels}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['msg']}, but got {first['input']!r}") from None
    check_backbone(backbone, size, channels=CHANNELS[config.channels])
    slices = open_slices(local_shards(data), size)
    split = make_split(slices.table, slices.fingerprint, seed=0)
    try:
        curve = find_lr(config, slices, split, steps=steps or STEPS)
    except (RuntimeError, ValueError, TrialFailedError) as error:
        raise ConfigError(f"{backbone} cannot be trained on {size} px in batches of {batch_size}: {error}") from error
    path = folder / curve_name(config)
    write_json(path, curve.model_dump())
    draw_curve(curve, path.with_suffix(".png"))
    say(lr_line(curve))
    say(f"curve in {path} and {path.with_suffix('.png')}")


OPTION_HELP: Final = "A value of the space file: epochs=4, parameters.size=64; may be given again."


@app.command()
def validate(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="A space file, or a shipped one.")],
    data: Annotated[str | None, typer.Option(help="Folder or URI of shards, for the time of a trial on them.")] = None,
    option: Annotated[list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help=OPTION_HELP)] = None,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Measure what a trial takes here.")] = True,
) -> None:
    """Check a space file; print what it resolves to, how large it is, and what its trials would cost here."""
    from ichsearch.data.cache import local_shards
    from ichsearch.search.paper import is_paper, load_paper
    from ichsearch.search.resolved import as_text
    from ichsearch.search.space_file import find_space, load_space
    from ichsearch.search.validate import costs, count_slices, summary

    path = find_space(space)
    if is_paper(path):
        spaces = [run.space for run in load_paper(path, option or ()).runs if not run.leaky]
    else:
        spaces = [load_space(path, option or (), may_leak=False)]
    for loaded in spaces:
        counts = count_slices(loaded, local_shards(data)) if data else None
        say(as_text(loaded))
        for line in summary(loaded):
            say(line)
        for line in costs(loaded, counts) if probe else ():
            say(line)


@app.command()
def schema(
    file: Annotated[Path | None, typer.Option("--out", help="Where it goes; default: printed.")] = None,
) -> None:
    """Print the JSON Schema of a space file, for editors that complete and check it."""
    from ichsearch.files import to_json, write_bytes
    from ichsearch.search.schema import space_schema

    content = to_json(space_schema())
    if file is None:
        sys.stdout.write(content.decode())
        return
    write_bytes(file, content)
    say(f"{file}: begin a space file beside it with\n# yaml-language-server: $schema={file.name}")


@app.command()
def leaderboard(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Folder or URI of a run.")],
    data: Annotated[
        str | None, typer.Option(help="The run's folder of shards, for baselines that it has not got yet.")
    ] = None,
    pareto: Annotated[
        str | None,
        typer.Option(help="Only trials that none beats in all of these columns: log_loss,chain_seconds."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: the summary and the rows.")] = False,
) -> None:
    """Show what a run has found: intervals over patients, who cannot be told from the best, who beats the baselines."""
    from ichsearch.files import to_json
    from ichsearch.report.confirmation import confirmation_text
    from ichsearch.report.leaderboard import read_leaderboard
    from ichsearch.report.leaderboard_table import as_objects, as_table
    from ichsearch.report.pareto import pareto_front
    from ichsearch.report.report import shards_of
    from ichsearch.report.summary import summarise, summary_as_json, summary_text
    from ichsearch.search.run_folder import opened

    with opened(run_folder) as folder:
        summary = summarise(folder, shards_of(folder, data))
        board, columns = read_leaderboard(folder), [] if pareto is None else pareto.split(",")
        confirmed = confirmation_text(folder)
    if columns:
        board = board[pareto_front(board, columns)]
    if as_json:
        sys.stdout.write(to_json({"summary": summary_as_json(summary), "rows": as_objects(board)}).decode())
        return
    Console(width=250).print(as_table(board, columns))  # so that lines may wrap, but cells do not
    say(summary_text(summary))
    if confirmed:
        say(confirmed)


@app.command()
def report(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Folder or URI of a run.")],
    data: Annotated[str | None, typer.Option(help="The run's folder of shards, for what shows slices.")] = None,
) -> None:
    """Draw what a run has found: one HTML page for any browser, offline."""
    from ichsearch.locations import disk_path
    from ichsearch.report.paper_page import write_paper
    from ichsearch.report.report import shards_of, write_report
    from ichsearch.search.paper_runs import PLAN
    from ichsearch.search.run_folder import opened

    with opened(run_folder) as folder:
        if (folder.root / PLAN).is_file():
            say(f"{write_paper(folder.root, disk_path(data) if data else None).page}: open it in a browser")
            return
        page = folder.shown(write_report(folder, shards_of(folder, data), [shlex.join(_command())]))
    say(f"{page}: open it in a browser")


@app.command()
def run(
    space: Annotated[
        str, typer.Option(help="A space file, or a shipped one: quickstart.yaml, architectures.yaml, paper.yaml.")
    ],
    data: Annotated[str | None, typer.Option(help="Shards, a folder or URI; without them a phantom is made.")] = None,
    folder: Annotated[str | None, typer.Option("--out", help="Run folder or URI; default runs/<space's name>.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default RAY_ADDRESS, else this machine.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the run instead of the space's number.")] = None,
    option: Annotated[list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help=OPTION_HELP)] = None,
    time: Annotated[str | None, typer.Option(help="Wall clock instead of the space's: 90s, 20m, 8h, 1d.")] = None,
    device_hours: Annotated[
        float | None, typer.Option("--device-hours", help="Budget summed over trials, instead of the space's.")
    ] = None,
    extend: Annotated[bool, typer.Option(help="Go on with a run though trials or the space have changed.")] = False,
    scale: Annotated[float | None, typer.Option(min=0.01, max=1, help="Of paper.yaml: shorter and smaller.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object an event on stdout, lines on stderr.")] = False,
) -> None:
    """Search a space: a leaderboard of trials in the run folder. Run again, it goes on where it stopped."""
    from ichsearch.cli_events import RunPrinter
    from ichsearch.cli_paper import run_paper_file
    from ichsearch.cli_progress import progress
    from ichsearch.report.confirmation import confirmation_text
    from ichsearch.report.leaderboard import write_leaderboard
    from ichsearch.report.lr_plot import draw_curve
    from ichsearch.report.provenance import noting
    from ichsearch.report.report import drawn_at_the_end
    from ichsearch.report.summary import summarise, summary_text
    from ichsearch.search.paper import is_paper, load_paper
    from ichsearch.search.run_folder import opened
    from ichsearch.search.runner import run_search
    from ichsearch.search.space_file import find_space, load_space
    from ichsearch.search.stages import Watchers

    given = {"trials": trials, "time": time, "device_hours": device_hours}
    said = [f"{name}={value}" for name, value in given.items() if value is not None]
    if is_paper(path := find_space(space)):
        if said or extend:
            raise ConfigError(f"{path.name} says itself how long its runs are; leave out --trials, --time and --extend")
        paper = load_paper(path, option or (), scale or 1.0)
        run_paper_file(paper, data, folder, address=address, as_json=as_json, command=_command())
        return
    if scale is not None:
        raise ConfigError(f"--scale is for a paper file, but {path.name} is a space; lower its epochs and size with -o")
    loaded = load_space(path, [*(option or ()), *said], may_leak=False)
    command, printer = _command(), RunPrinter(out, err, _command(), as_json=as_json)
    with opened(folder or Path("runs") / loaded.name) as target:
        leaderboard = target.shown(target.leaderboard)
        with printer.ending(leaderboard, loaded.metric):
            with progress(err) as show:
                watchers = Watchers(noting(printer.tell, target, command), show, write_leaderboard, draw_curve)
                outcome = run_search(
                    loaded, data, target, address=address, extend=extend, command=command, watchers=watchers
                )
            printer.say(summary_text(summarise(target, outcome.shards)))
            if confirmed := confirmation_text(target):
                printer.say(confirmed)
            printer.say(drawn_at_the_end(target, outcome.shards))
    printer.close(leaderboard, loaded.metric, outcome.standing)


def _command() -> list[str]:
    """What was typed."""
    return ["ichsearch", *sys.argv[1:]]


@app.command()
def confirm(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="Run folder or URI.")],
    data: Annotated[str | None, typer.Option(help="The run's shards; not for a run on its own phantom.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many of the best; default the space's, or 3.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Fresh seeds of each; default the space's, or 3.")] = None,
    folds: Annotated[
        bool | None, typer.Option("--folds/--no-folds", help="Hold out each fold in turn: out-of-fold predictions.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default RAY_ADDRESS, else this machine.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object an event on stdout, lines on stderr.")] = False,
) -> None:
    """Train the best trials of a run anew from fresh seeds, then open the test fold for them; noted in the run."""
    from ichsearch.cli_events import RunPrinter
    from ichsearch.cli_progress import progress
    from ichsearch.report.confirmation import confirmation_text
    from ichsearch.report.leaderboard import write_leaderboard
    from ichsearch.report.lr_plot import draw_curve
    from ichsearch.report.provenance import noting
    from ichsearch.report.report import drawn_at_the_end
    from ichsearch.search import events
    from ichsearch.search.confirm import confirm_run
    from ichsearch.search.run_folder import opened
    from ichsearch.search.stages import Watchers

    options = {name: value for name, value in (("top", top), ("seeds", seeds), ("folds", folds)) if value is not None}
    command, printer = _command(), RunPrinter(out, err, _command(), as_json=as_json)
    with opened(folder) as target:
        leaderboard = target.shown(target.leaderboard)
        with printer.ending(leaderboard, ""):
            with progress(err) as show:
                watchers = Watchers(noting(printer.tell, target, command), show, write_leaderboard, draw_curve)
                confirmed = confirm_run(target, data, options, address=address, command=command, watchers=watchers)
            write_leaderboard(target)
            printer.say(confirmation_text(target))
            printer.say(drawn_at_the_end(target, confirmed.shards))
    printer.tell(events.confirmed(leaderboard, confirmed.metric))
