"""A run from its first stage to its last trial, by the function that the command calls."""

import json
from pathlib import Path

import pytest
from slice_sets import make_rows, write_shards
from spaces import SMALL, write_space

from ichsearch.errors import AlreadyRunningError
from ichsearch.files import read_json
from ichsearch.search.events import Event
from ichsearch.search.resolved import save_space
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.runner import _keep_preprocessing, run_search
from ichsearch.search.space_file import load_space
from ichsearch.search.stages import Watchers

HALF_A_LINE = b'{"op_code": 4, "wor'


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("stage", ["weights", "lr"])
def test_a_driver_whose_folder_was_taken_in_an_early_stage_leaves_it_alone(tmp_path: Path, stage: str) -> None:
    """It did not beat for long, and the driver that goes on elsewhere is writing at this very moment."""
    write_shards(tmp_path / "shards", make_rows(patients=15, slices=4), 32)
    space, folder = load_space(write_space(tmp_path, SMALL)), RunFolder(tmp_path / "run")
    lock = Path(f"{folder.journal}.lock")
    folder.root.mkdir()
    save_space(space, folder.space)

    def taken(event: Event) -> None:
        if event.kind == stage and not lock.is_symlink():
            (folder.root / "lease.json").write_text(json.dumps({"host": "another", "token": "theirs", "beat": 1}))
            folder.space.write_text("theirs")
            folder.journal.write_bytes(HALF_A_LINE)
            lock.symlink_to(folder.journal)

    watchers = Watchers(taken, lambda done, total: None, lambda folder: None, lambda curve, path: None)
    with pytest.raises(AlreadyRunningError, match="another driver took"):
        run_search(space, tmp_path / "shards", folder, address=None, extend=True, command=[], watchers=watchers)
    assert (folder.space.read_text(), folder.journal.read_bytes()) == ("theirs", HALF_A_LINE)
    assert lock.is_symlink()
    assert not folder.trials.exists()


def test_break_points_of_an_earlier_space_stay_known(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", make_rows(patients=15, slices=4), 32)
    path, folder = write_space(tmp_path, SMALL), RunFolder(tmp_path / "run")
    for option in ("parameters.channels=hist", "parameters.channels=hu"):
        _keep_preprocessing(load_space(path, [option]), tmp_path / "shards", folder)
        assert read_json(folder.preprocessing)["hist_breaks"]["32"]
