import base64
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from slice_sets import draw_image

from ichsearch.dicom.windows import BRAIN
from ichsearch.errors import ConfigError, DataError
from ichsearch.files import sha256_of, write_json
from ichsearch.labels import ANY, LABELS, SUBTYPES
from ichsearch.report.inspect import write_inspection
from ichsearch.report.inspect_cohort import EXAMPLES, SAMPLE_SHARDS, choose_examples, read_cohort, spread
from ichsearch.report.inspect_figures import windowed
from ichsearch.report.inspect_images import _box_in_frame
from ichsearch.report.inspect_sections import SECTIONS, balance, co_occurrence, files, prevalence
from ichsearch.shards.labels_csv import Level
from ichsearch.shards.manifest import Counts, Settings, ShardEntry, make_manifest
from ichsearch.shards.schema import FRAME_SIDE, IMAGES, ShardWriter, pack_hu, shard_schema

SIZE = 32
CANARY = "<script>alert('canary')</script>"
Row = dict[str, Any]


def blank(kind: pa.DataType) -> str | bool | int:
    if pa.types.is_string(kind):
        return "x"
    return False if pa.types.is_boolean(kind) else 0


def make_row(rng: np.random.Generator, patient: int, index: int, slices: int, *, labelled: bool) -> Row:
    """A row of every column; each patient's odd slices bleed with a subtype of its own, one of four with a second."""
    kinds = [SUBTYPES[patient % 5], *([SUBTYPES[(patient + 1) % 5]] if index % 4 == 1 else [])] if index % 2 else []
    truth = {label: int(label in kinds or (label == ANY and bool(kinds))) if labelled else None for label in LABELS}
    middle = index == slices // 2
    return {
        **{field.name: blank(field.type) for field in shard_schema(SIZE)},
        "slice": f"p{patient:03d}s{index:02d}",
        "patient": f"p{patient:03d}",
        "series_index": index,
        "series_slices": slices,
        "brain_share": index / slices,
        "crop_top": 64,
        "crop_left": 128,
        "crop_side": 256,
        "rows": 512,
        "columns": 400,
        "hu": pack_hu(draw_image(rng, SIZE, bleeds=bool(kinds))),
        "frame": bytes(range(128)) * FRAME_SIDE if middle else None,
        **truth,
    }


def make_rows(patients: int = 12, slices: int = 6, *, labelled: bool = True) -> list[Row]:
    rng = np.random.default_rng(0)
    return [make_row(rng, p, i, slices, labelled=labelled) for p in range(patients) for i in range(slices)]


def make_ledger(rows: list[Row]) -> dict[str, Any]:
    positives = Counter(label for row in rows for label in LABELS if row[label])
    return {
        "filter": [
            {"min_brain": 0.01 * place, "slices_lost": 3 * place, "positives_lost": dict(positives) if place else {}}
            for place in range(7)
        ],
        "populations": [
            {"bits_stored": 12, "signed": False, "slices": len(rows), "labelled": 5, "positive": 2},
            {"bits_stored": 16, "signed": True, "slices": 0, "labelled": 0, "positive": 0},
        ],
        "transfer_syntaxes": {CANARY: len(rows)},
        "slice_thickness_mm": {str(place): 1 for place in range(20)},
        "tilt_degrees": {"0": len(rows)},
        "fixed_wrap": 3,
        "clipped_slices": {"low": 1, "high": 2},
        "shared_images": {"images": 1, "slices": 2, "patients": 2, "conflicting_labels": 1},
    }


def make_counts(rows: list[Row]) -> Counts:
    return Counts(
        found=len(rows) + 7,
        ok=len(rows),
        duplicate=3,
        quarantined=4,
        labelled=sum(row[ANY] is not None for row in rows),
        labels_without_file=0,
        patients=len({row["patient"] for row in rows}),
        patients_unknown=0,
        studies=1,
        series=1,
        fixed_wrap=3,
        positives={label: sum(row[label] or 0 for row in rows) for label in LABELS},
        reasons={"missing_tag:PixelSpacing": 3, CANARY: 1},
    )


def write_folder(folder: Path, rows: list[Row], shards: int = 3, level: Level = "slice") -> Path:
    """A folder of shards of these rows, as preprocessing leaves it."""
    schema, entries = shard_schema(SIZE), []
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        path = folder / f"shard-{number}.parquet"
        with ShardWriter(path, schema) as writer:
            writer.write([rows[row] for row in part])
        entries.append(ShardEntry(file=path.name, slices=len(part), sha256=sha256_of(path)))
    settings = Settings(size=SIZE, key_id="test key", source_id="test source")
    manifest = make_manifest(settings=settings, label_level=level, counts=make_counts(rows), shards=entries)
    write_json(folder / "manifest.json", manifest.model_dump())
    write_json(folder / "ledger.json", make_ledger(rows))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema).drop_columns(list(IMAGES)), folder / "metadata.parquet")
    return folder


class Page(HTMLParser):
    """Start tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("inspect") / "shards", make_rows())


@pytest.fixture(scope="module")
def page(shards: Path) -> Path:
    return write_inspection(shards, shards / "inspect")


def test_the_page_has_every_section_with_a_sentence(page: Path) -> None:
    text = page.read_text()
    assert page.name == "index.html"
    ids = [attributes["id"] for tag, attributes in Page(text).tags if tag == "section"]
    assert len(ids) == len(set(ids)) == len(SECTIONS)
    assert text.count('<p class="look">') == len(SECTIONS)
    assert "not for clinical use" in text.lower()


def test_the_page_needs_no_network_and_runs_nothing(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]+", "", text))
    policy = next(attributes["content"] for tag, attributes in Page(text).tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {tag for tag, _ in Page(text).tags} & {"script", "link", "iframe", "object"}


def test_every_image_is_embedded_with_an_alt_text_and_stands_beside_the_page(page: Path) -> None:
    images = [attributes for tag, attributes in Page(page.read_text()).tags if tag == "img"]
    beside = {path.read_bytes() for path in page.parent.glob("*.png")}
    assert all(image["alt"] for image in images)
    start = "data:image/png;base64,"
    assert all((image["src"] or "").startswith(start) for image in images)
    assert {base64.b64decode((image["src"] or "").removeprefix(start)) for image in images} == beside
    assert len(images) == len(beside) == 16
    for path in page.parent.glob("*.png"):
        with Image.open(path) as image:
            image.verify()


def test_only_the_page_and_its_pictures_are_written(page: Path) -> None:
    assert {path.suffix for path in page.parent.iterdir()} == {".html", ".png"}


def test_a_folder_that_holds_something_else_is_left_alone(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<title>my site</title>")
    (tmp_path / "prevalence.png").write_bytes(b"mine")

    for out in (tmp_path, tmp_path / "prevalence.png"):
        with pytest.raises(ConfigError, match="new, empty or holds an earlier page"):
            write_inspection(shards, out)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "index.html": b"<title>my site</title>",
        "prevalence.png": b"mine",
    }


def test_an_earlier_page_is_drawn_anew_even_if_it_was_cut_short(shards: Path, page: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(page.read_bytes())

    write_inspection(shards, tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in page.parent.iterdir()}


def test_the_same_folder_gives_the_same_bytes(shards: Path, page: Path, tmp_path: Path) -> None:
    assert write_inspection(shards, tmp_path).read_bytes() == page.read_bytes()


def test_text_of_the_files_is_escaped(page: Path) -> None:
    text = page.read_text()
    assert CANARY not in text
    assert text.count("&lt;script&gt;") == 2  # the transfer syntax and the reason


def test_a_cohort_without_labels_gets_a_page_that_says_so(tmp_path: Path) -> None:
    page = write_inspection(write_folder(tmp_path / "shards", make_rows(labelled=False)), tmp_path / "out")
    text = page.read_text()
    assert len([tag for tag, _ in Page(text).tags if tag == "section"]) == len(SECTIONS)
    assert text.count("no slice of this cohort has labels") == 6
    assert (tmp_path / "out" / "sample_unlabelled.png").is_file()
    assert not (tmp_path / "out" / "prevalence.png").exists()


def test_a_cohort_of_one_slice_gets_a_page(tmp_path: Path) -> None:
    rows = make_rows(patients=1, slices=1)
    assert write_inspection(write_folder(tmp_path / "shards", rows, shards=1), tmp_path / "out").is_file()


def test_files_are_accounted_for_with_explanations(shards: Path) -> None:
    accounts, reasons = files(read_cohort(shards)).tables
    assert [row[:2] for row in accounts.rows] == [
        ("ok", "72"),
        ("duplicate", "3"),
        ("quarantined", "4"),
        ("found", "79"),
    ]
    assert reasons.rows[0] == ("missing_tag:PixelSpacing", "3", "a needed header element is missing")


def test_prevalence_counts_slices_and_patients_and_names_rare_labels(shards: Path) -> None:
    section = prevalence(read_cohort(shards))
    epidural = section.tables[0].rows[0]
    assert epidural == ("epidural", "13", "18.1 %", "5", "41.7 %")  # patients 0, 5, 10 and, second, 4 and 9
    assert section.notes == ["Too rare here: subarachnoid, subdural."]


def test_labels_of_whole_studies_are_said_to_be_so(shards: Path, tmp_path: Path) -> None:
    rows = make_rows(patients=1)
    assert not balance(read_cohort(shards)).notes
    assert "a whole study" in balance(read_cohort(write_folder(tmp_path / "s", rows, level="study"))).notes[0]


def test_co_occurrence_says_how_often_a_subtype_comes_alone(shards: Path) -> None:
    assert "epidural 3 of 13" in co_occurrence(read_cohort(shards)).notes[0]


def test_the_sample_shows_every_subtype_from_different_patients(shards: Path) -> None:
    cohort = read_cohort(shards)
    assert list(cohort.sample.examples) == [*SUBTYPES, "none"]
    for name, rows in cohort.sample.examples.items():
        assert len(set(cohort.table.loc[rows, "patient"])) == EXAMPLES
        assert all(cohort.table.loc[rows, name if name != "none" else ANY] == (name != "none"))


def test_the_sample_holds_the_pixels_of_its_rows(shards: Path) -> None:
    sample, rows = read_cohort(shards).sample, make_rows()
    assert sample.slices_counted == len(rows)
    assert sample.hu_counts.sum() == len(rows) * SIZE**2
    assert all(pack_hu(image) == rows[row]["hu"] for row, image in sample.images.items())
    assert all(rows[row]["frame"] == frame.tobytes() for row, frame in sample.frames.items())


def test_a_subtype_that_the_spread_shards_lack_is_still_shown(tmp_path: Path) -> None:
    rows = make_rows(patients=40, slices=2)
    for row in rows:
        row["epidural"] = int(row["slice"] in ("p001s01", "p039s01"))
    cohort = read_cohort(write_folder(tmp_path / "shards", rows, shards=40))
    assert SAMPLE_SHARDS < cohort.sample.shards < 40
    assert cohort.sample.examples["epidural"] == [3, 79]


def test_few_patients_give_several_examples_each(shards: Path) -> None:
    table = read_cohort(shards).table
    one = table[table["patient"] == "p000"]
    assert len(choose_examples(one)["epidural"]) == EXAMPLES


@pytest.mark.parametrize("number", [0, 1, 3, 10, 11])
def test_spread_keeps_order_and_number(number: int) -> None:
    chosen = spread(range(10), number)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(number, 10)


def test_the_crop_box_is_scaled_to_the_small_frame(shards: Path) -> None:
    assert _box_in_frame(read_cohort(shards).table, 0) == (16, 32, 64)


def test_a_window_maps_its_ends_to_black_and_white() -> None:
    hu = np.array([[-1000, BRAIN.low_hu, BRAIN.level_hu, BRAIN.high_hu, 3000]], np.int16)
    assert windowed(hu, BRAIN).tolist() == [[0, 0, 0.5, 1, 1]]


@pytest.mark.parametrize("name", ["metadata.parquet", "ledger.json"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "shards", make_rows(patients=1), shards=1)
    (folder / name).write_text("{}")
    with pytest.raises(DataError, match=name):
        write_inspection(folder, tmp_path / "out")
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        write_inspection(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "shards", make_rows(patients=1), shards=1)
    pq.write_table(pq.read_table(folder / "metadata.parquet").slice(1), folder / "metadata.parquet")
    with pytest.raises(DataError, match="6 rows, but has 5"):
        read_cohort(folder)
