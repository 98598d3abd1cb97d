"""Shards, their plan, their manifest and the key: equal input gives equal bytes, and damage is refused."""

import pickle
import random
import stat
import tracemalloc
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dicom_files import head_hu, stored_12_bit, write_ct
from slice_sets import header_columns

from ichsearch.dicom.header import SliceHeader, read_header
from ichsearch.errors import ConfigError, DataError
from ichsearch.files import read_json, sha256_of, write_json
from ichsearch.labels import LABELS
from ichsearch.shards.identity import Key, home_folder, load_key
from ichsearch.shards.manifest import (
    MANIFEST,
    SETTINGS,
    Counts,
    Manifest,
    Settings,
    ShardEntry,
    claim_folder,
    make_manifest,
    read_manifest,
    write_manifest,
)
from ichsearch.shards.plan import (
    MAX_SHARD_BYTES,
    SHARDS_OF_SMALL_COHORT,
    LabelledFile,
    Rejection,
    ShardJob,
    SourceFile,
    drop_duplicates,
    plan_shards,
    same_slice,
    source_file,
)
from ichsearch.shards.preprocess import image_hash, one_copy
from ichsearch.shards.schema import ROW_GROUP_SLICES, ShardWriter, pack_hu, read_shard, shard_schema, unpack_hu
from ichsearch.storage import FoundFile, open_folder

SIZE = 16
KEY = Key(b"k" * 32)
SETTINGS_A = Settings(size=SIZE, key_id=KEY.id, source_id="source")


def shard_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "slice": f"{index:032x}",
            "patient": "p",
            "patient_known": True,
            "study": "t",
            "series": "s",
            "series_index": index,
            "series_slices": count,
            "position_mm": index * 2.5,
            "spacing_row_mm": 0.5,
            "spacing_column_mm": 0.75,
            "brain_share": float(np.float32(rng.random())),
            "crop_top": 1,
            "crop_left": 2,
            "crop_side": 300,
            "stored_hash": "h",
            **header_columns(SIZE),
            **dict.fromkeys(LABELS, None if index % 2 else 1),
            "hu": pack_hu(rng.integers(-1024, 3072, (SIZE, SIZE)).astype(np.int16)),
        }
        for index in range(count)
    ]


def write_shard(path: Path, rows: list[dict[str, Any]]) -> str:
    with ShardWriter(path, shard_schema(SIZE)) as writer:
        assert writer.write(rows) == len(rows)
    return sha256_of(path)


def read_rows(path: Path, sha256: str) -> list[dict[str, Any]]:
    return [row for batch in read_shard(path, sha256, SIZE) for row in batch.to_pylist()]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = shard_rows(ROW_GROUP_SLICES + 3)
    path = tmp_path / "shard.parquet"

    assert read_rows(path, write_shard(path, rows)) == rows


def test_images_come_back_with_type_and_shape(tmp_path: Path) -> None:
    rows = shard_rows(3)
    path = tmp_path / "shard.parquet"

    batches = list(read_shard(path, write_shard(path, rows), SIZE))

    assert all(batch.schema.equals(shard_schema(SIZE)) for batch in batches)
    assert batches[0].schema.field("hu").type == pa.binary(SIZE * SIZE * 2)
    assert batches[0]["hu"][2].as_py() == rows[2]["hu"]


def test_an_image_of_another_size_cannot_be_written(tmp_path: Path) -> None:
    rows = shard_rows(1)
    rows[0]["hu"] = rows[0]["hu"][:-2]

    with pytest.raises(pa.ArrowInvalid):
        write_shard(tmp_path / "shard.parquet", rows)


def test_a_shard_names_its_version_and_checks_its_pages(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_shard(path, shard_rows(2))

    assert pq.read_schema(path).metadata[b"ichsearch_schema_version"] == b"3"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


@pytest.mark.parametrize("chunk", [1, 5, ROW_GROUP_SLICES, 1000])
def test_rows_that_arrive_in_other_chunks_give_equal_bytes(tmp_path: Path, chunk: int) -> None:
    rows = shard_rows(ROW_GROUP_SLICES * 2 + 7)
    whole = write_shard(tmp_path / "whole.parquet", rows)

    def arriving() -> Iterator[dict[str, Any]]:
        yield from chain.from_iterable(rows[start : start + chunk] for start in range(0, len(rows), chunk))

    with ShardWriter(tmp_path / "chunks.parquet", shard_schema(SIZE)) as writer:
        assert writer.write(arriving()) == len(rows)

    assert sha256_of(tmp_path / "chunks.parquet") == whole
    groups = pq.ParquetFile(tmp_path / "chunks.parquet").metadata
    lengths = [groups.row_group(group).num_rows for group in range(groups.num_row_groups)]
    assert lengths == [ROW_GROUP_SLICES, ROW_GROUP_SLICES, 7]


def test_another_row_gives_other_bytes(tmp_path: Path) -> None:
    hashes = {write_shard(tmp_path / f"{seed}.parquet", shard_rows(4, seed)) for seed in (0, 1, 1)}

    assert len(hashes) == 2


@pytest.mark.parametrize("place", [0, 100, 0.5, -1], ids=["magic", "page", "middle", "last"])
def test_a_flipped_bit_is_refused(tmp_path: Path, place: float) -> None:
    path = tmp_path / "shard-00003.parquet"
    sha256 = write_shard(path, shard_rows(4))
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if place == 0.5 else int(place)] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"SHA-256.*shard-00003\.parquet.*preprocess"):
        read_rows(path, sha256)


def test_a_cut_shard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard-00003.parquet"
    sha256 = write_shard(path, shard_rows(4))
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(DataError, match=r"shard-00003\.parquet"):
        read_rows(path, sha256)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must exist, but shard-00003\.parquet does not"):
        read_rows(tmp_path / "shard-00003.parquet", "")


def test_a_shard_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard-00003.parquet"
    pq.write_table(pa.table({"slice": ["a"]}), path)

    with pytest.raises(DataError, match=r"columns of schema version 3, but shard-00003\.parquet"):
        read_rows(path, sha256_of(path))


def test_a_shard_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard-00003.parquet"
    sha256 = write_shard(path, shard_rows(1))

    with pytest.raises(DataError, match=r"shard-00003\.parquet"):
        list(read_shard(path, sha256, SIZE * 2))


def counts(ok: int = 3) -> Counts:
    return Counts(
        found=ok,
        ok=ok,
        duplicate=0,
        quarantined=0,
        labelled=0,
        labels_without_file=0,
        patients=1,
        patients_unknown=0,
        studies=1,
        series=1,
        fixed_wrap=0,
        positives=dict.fromkeys(LABELS, 0),
        reasons={},
    )


def manifest(settings: Settings = SETTINGS_A, sha256: str = "a" * 64) -> Manifest:
    return make_manifest(settings, None, counts(), [ShardEntry(file="shard-00000.parquet", slices=3, sha256=sha256)])


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(open_folder(tmp_path), manifest())

    assert read_manifest(tmp_path) == manifest()


@pytest.mark.parametrize(
    "other",
    [
        manifest(SETTINGS_A.model_copy(update={"size": 32})),
        manifest(SETTINGS_A.model_copy(update={"crop": "slice"})),
        manifest(SETTINGS_A.model_copy(update={"key_id": "x"})),
        manifest(SETTINGS_A.model_copy(update={"source_id": "x"})),
        manifest(SETTINGS_A.model_copy(update={"schema_version": 4})),
        manifest(sha256="b" * 64),
    ],
)
def test_the_fingerprint_changes_with_settings_and_shards(other: Manifest) -> None:
    assert other.fingerprint != manifest().fingerprint


def test_the_fingerprint_does_not_depend_on_the_run() -> None:
    assert manifest().fingerprint == make_manifest(SETTINGS_A, None, counts(9), manifest().shards).fingerprint


@pytest.mark.parametrize("version", [0, 1, None, "2"])
def test_a_manifest_of_another_version_is_refused_by_value(tmp_path: Path, version: Any) -> None:
    value = manifest().model_dump()
    value["settings"]["schema_version"] = version
    write_json(tmp_path / MANIFEST, value)

    with pytest.raises(DataError, match=rf"schema version 3, but .* has {version};"):
        read_manifest(tmp_path)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ichsearch preprocess DICOM_DIR --out SHARDS"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"settings": {}}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)

    with pytest.raises(DataError):
        read_manifest(tmp_path)


def test_an_unknown_or_missing_field_of_a_manifest_is_named(tmp_path: Path) -> None:
    value = manifest().model_dump()
    del value["counts"]["ok"]
    write_json(tmp_path / MANIFEST, value)

    with pytest.raises(DataError, match=r"counts\.ok is wrong"):
        read_manifest(tmp_path)


def test_a_folder_is_claimed_once_for_its_settings(tmp_path: Path) -> None:
    claim_folder(open_folder(tmp_path / "out"), SETTINGS_A)
    claim_folder(open_folder(tmp_path / "out"), SETTINGS_A)

    assert Settings.model_validate(read_json(tmp_path / "out" / SETTINGS)) == SETTINGS_A


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": 32}, "size 16 there, 32 asked for"),
        ({"crop": "slice"}, "crop series there, slice asked for"),
        ({"source_id": "x"}, "another DICOM folder"),
        ({"key_id": "x"}, "another key"),
        ({"size": 32, "crop": "slice"}, "size 16 there, 32 asked for; crop series there, slice asked for"),
    ],
)
def test_a_folder_of_other_settings_is_refused_with_the_difference(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    claim_folder(open_folder(tmp_path), SETTINGS_A)

    with pytest.raises(ConfigError, match=says):
        claim_folder(open_folder(tmp_path), SETTINGS_A.model_copy(update=change))
    assert Settings.model_validate(read_json(tmp_path / SETTINGS)) == SETTINGS_A


def test_a_folder_of_foreign_files_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(ConfigError, match="holds other files"):
        claim_folder(open_folder(tmp_path), SETTINGS_A)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")

    with pytest.raises(ConfigError):
        claim_folder(open_folder(tmp_path / "out"), SETTINGS_A)
    assert (tmp_path / "out").read_text() == "mine"


def test_the_key_is_made_once_and_readable_by_its_user_alone(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"

    made, loaded = load_key(home), load_key(home)

    (path,) = home.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.id == loaded.id
    assert made.hash("patient", "ID_1") == loaded.hash("patient", "ID_1")


def test_a_key_and_a_home_that_are_open_to_others_are_closed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = load_key(home)
    home.chmod(0o777)
    (home / "patient.key").chmod(0o755)

    assert load_key(home).id == made.id
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "patient.key").stat().st_mode) == 0o600


def test_a_shared_place_stays_open(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    load_key(tmp_path)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


def test_another_key_gives_other_hashes_and_is_refused_by_the_folder(tmp_path: Path) -> None:
    mine, yours = load_key(tmp_path / "mine"), load_key(tmp_path / "yours")
    claim_folder(open_folder(tmp_path / "out"), Settings(key_id=mine.id, source_id="source"))

    assert mine.id != yours.id
    assert mine.hash("patient", "ID_1") != yours.hash("patient", "ID_1")
    with pytest.raises(ConfigError, match="another key"):
        claim_folder(open_folder(tmp_path / "out"), Settings(key_id=yours.id, source_id="source"))


@pytest.mark.parametrize("secret", [b"", b"short", b"x" * 33])
def test_a_damaged_key_is_refused(tmp_path: Path, secret: bytes) -> None:
    (tmp_path / "patient.key").write_bytes(secret)

    with pytest.raises(ConfigError, match="32 bytes"):
        load_key(tmp_path)


def test_hashes_differ_by_kind_and_text_and_do_not_show_it() -> None:
    hashes = {KEY.hash(kind, text) for kind in ("patient", "study") for text in ("ID_1", "ID_2")}

    assert len(hashes) == 4
    assert all(len(value) == 32 and int(value, 16) >= 0 for value in hashes)


def test_a_name_that_is_no_utf_8_has_a_hash() -> None:
    assert KEY.hash("path", "a\udcff") != KEY.hash("path", "a\udcfe")


def test_the_home_folder_is_that_of_the_environment(ichsearch_home: Path) -> None:
    assert home_folder() == ichsearch_home


def cohort(studies: int, slices: int, seed: int = 0) -> list[LabelledFile]:
    """Studies of 1 to `slices` files, shuffled."""
    rng = random.Random(seed)  # noqa: S311 - a test's order
    files = []
    for study in range(studies):
        for index in range(rng.randint(1, slices)):
            uid = f"ID_{study}_{index}"
            place = SliceHeader(uid, f"study{study}", f"series{study}", f"patient{study // 2}", float(index))
            files.append(LabelledFile(source_file(FoundFile(f"{uid}.dcm", 100, 7), place, KEY), None))
    rng.shuffle(files)
    return files


def files_of(job: ShardJob) -> list[LabelledFile]:
    return [file for study in job.studies for file in study]


@pytest.mark.parametrize(("studies", "slices"), [(1, 1), (3, 4), (40, 6), (300, 60)])
def test_no_study_is_split_and_no_file_lost(studies: int, slices: int) -> None:
    files = cohort(studies, slices)

    jobs = plan_shards(files, "settings", SIZE)

    assert sorted(file for job in jobs for file in files_of(job)) == sorted(files)
    homes = [{file.source.study for file in files_of(job)} for job in jobs]
    assert sum(map(len, homes)) == studies
    assert all(len({file.source.study for file in study}) == 1 for job in jobs for study in job.studies)
    assert [job.name for job in jobs] == [f"shard-{number:05d}" for number in range(len(jobs))]
    assert min(studies, 8) <= len(jobs) <= SHARDS_OF_SMALL_COHORT


def test_a_large_cohort_makes_shards_of_192_mebibytes() -> None:
    files = cohort(300, 60)

    jobs = plan_shards(files, "settings", 1024)

    full = MAX_SHARD_BYTES // (2 * 1024 * 1024)
    assert 0.8 * full < len(files) / len(jobs)
    assert max(len(files_of(job)) for job in jobs) < full + 60


def test_the_plan_does_not_depend_on_the_order_of_files() -> None:
    files = cohort(40, 6)
    plan = plan_shards(files, "settings", SIZE)
    for seed in range(5):
        random.Random(seed).shuffle(files)  # noqa: S311 - a test's order
        assert plan_shards(files, "settings", SIZE) == plan


def test_inputs_change_with_settings_and_with_each_file_and_label() -> None:
    files = cohort(3, 4)
    (first, *others) = files
    grown = first._replace(source=first.source._replace(n_bytes=101))
    touched = first._replace(source=first.source._replace(modified_ns=8))
    labelled = first._replace(labels=(0, 0, 0, 0, 0, 0))
    variants = [files, [grown, *others], [touched, *others], [labelled, *others], others]

    inputs = [tuple(job.inputs for job in plan_shards(variant, "settings", SIZE)) for variant in variants]
    inputs.append(tuple(job.inputs for job in plan_shards(files, "other settings", SIZE)))

    assert len(set(inputs)) == len(inputs)


def source(folder: Path, name: str, seed: int, uid: str = "ID_1") -> SourceFile:
    path = write_ct(folder / name, stored_12_bit(head_hu(32, seed)), {"SOPInstanceUID": uid})
    return source_file(FoundFile(str(path), path.stat().st_size, 0), read_header(path), KEY)


def truncated(file: SourceFile) -> SourceFile:
    path = Path(file.location)
    path.write_bytes(path.read_bytes()[:-100])
    return file


def without_duplicates(files: list[SourceFile]) -> tuple[list[SourceFile], int, list[Rejection]]:
    return drop_duplicates(same_slice(files), {file.location: image_hash(file.location) for file in files})


def test_of_equal_images_with_one_uid_the_first_is_kept(tmp_path: Path) -> None:
    files = [source(tmp_path, "a.dcm", 1), source(tmp_path, "b.dcm", 1), source(tmp_path, "c.dcm", 1, "ID_2")]

    kept, duplicates, conflicting = without_duplicates(files)

    assert (kept, duplicates, conflicting) == ([files[0], files[2]], 1, [])


def test_other_images_with_one_uid_are_all_refused(tmp_path: Path) -> None:
    files = [source(tmp_path, "a.dcm", 1), source(tmp_path, "b.dcm", 2), source(tmp_path, "c.dcm", 1, "ID_2")]

    kept, duplicates, conflicting = without_duplicates(files)

    assert (kept, duplicates) == ([files[2]], 0)
    assert [(Path(item.location).name, item.reason) for item in conflicting] == [
        ("a.dcm", "conflicting_duplicate"),
        ("b.dcm", "conflicting_duplicate"),
    ]


def refusals(files: list[Rejection]) -> list[tuple[str, str]]:
    return [(Path(item.location).name, item.reason) for item in files]


def test_an_unreadable_copy_is_refused_under_its_own_reason(tmp_path: Path) -> None:
    cut, good = truncated(source(tmp_path, "a.dcm", 1)), source(tmp_path, "b.dcm", 1)

    kept, duplicates, refused = without_duplicates([cut, good])

    assert (kept, duplicates, refusals(refused)) == ([good], 0, [("a.dcm", "truncated_pixels")])


def test_only_readable_copies_are_compared(tmp_path: Path) -> None:
    names = ("a.dcm", "c.dcm", "d.dcm")
    files = [source(tmp_path, name, 1) for name in names] + [truncated(source(tmp_path, "b.dcm", 2))]

    kept, duplicates, refused = without_duplicates(files)

    assert (kept, duplicates, refusals(refused)) == ([files[0]], 2, [("b.dcm", "truncated_pixels")])


def test_unreadable_copies_of_conflicting_ones_keep_their_reason(tmp_path: Path) -> None:
    files = [source(tmp_path, "a.dcm", 1), source(tmp_path, "b.dcm", 2), truncated(source(tmp_path, "c.dcm", 1))]

    kept, duplicates, refused = without_duplicates(files)

    assert (kept, duplicates) == ([], 0)
    assert [reason for _, reason in refusals(refused)] == ["conflicting_duplicate"] * 2 + ["truncated_pixels"]


def test_of_unreadable_copies_one_is_kept_to_be_quarantined_later(tmp_path: Path) -> None:
    files = [truncated(source(tmp_path, name, 1)) for name in ("a.dcm", "b.dcm")]

    kept, duplicates, refused = without_duplicates(files)

    assert (kept, duplicates, refusals(refused)) == ([files[0]], 0, [("b.dcm", "truncated_pixels")])


def test_the_same_image_under_two_uids_is_kept_twice(tmp_path: Path) -> None:
    files = [source(tmp_path, "a.dcm", 1), source(tmp_path, "b.dcm", 1, "ID_2")]

    assert without_duplicates(files) == (files, 0, [])


def test_the_driver_keeps_less_than_a_kilobyte_a_file() -> None:
    slices, files = 30, 12_000
    location = "/a/folder/as/long/as/they/are/where/studies/are/exported/study{}/series{}/slice{}.dcm"
    tracemalloc.start()
    shared: dict[str, str] = {}
    sources = []
    for number in range(files):
        study = f"1.2.840.113619.2.{number // slices}"
        header = SliceHeader(f"{study}.1.{number}", study, f"{study}.1", f"patient {number // slices}", 2.5 * number)
        found = FoundFile(location.format(number // slices, 1, number), 525_000 + number, 10**18 + number)
        sources.append(one_copy(pickle.loads(pickle.dumps(source_file(found, header, KEY))), shared))  # noqa: S301 - own
    kept, _, _ = drop_duplicates(same_slice(sources), {})
    labels = {source.slice: (0, 0, 0, 0, 0, 0) for source in kept}
    jobs = plan_shards([LabelledFile(source, labels[source.slice]) for source in kept], "settings", 256)
    used_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert sum(len(files_of(job)) for job in jobs) == files
    assert used_bytes / files < 1000
    assert peak_bytes / files < 1000


def test_packed_hu_comes_back() -> None:
    hu = np.arange(-(2**15), 2**15, dtype=np.int16).reshape(1, 256, 256)

    packed = np.stack([np.frombuffer(pack_hu(image), np.uint8).reshape(2, 256, 256) for image in hu])

    assert np.array_equal(unpack_hu(packed), hu)
    assert np.array_equal(packed[0, 0], hu[0] & 255)


@pytest.mark.parametrize(
    "change",
    [{"BitsStored": 16, "HighBit": 15}, {"RescaleSlope": "2"}, {"PhotometricInterpretation": "MONOCHROME1"}],
    ids=lambda change: next(iter(change)),
)
def test_the_same_values_that_mean_other_hu_are_no_duplicate(tmp_path: Path, change: dict[str, Any]) -> None:
    wrapped = {"RescaleIntercept": "0"}  # with 12 bits stored a reason to mend the values, with 16 none
    paths = [
        write_ct(tmp_path / f"{number}.dcm", stored_12_bit(head_hu(64)) + np.uint16(2000), wrapped | more)
        for number, more in enumerate([{}, change])
    ]

    assert image_hash(str(paths[0])) != image_hash(str(paths[1]))
