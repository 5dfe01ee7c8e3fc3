"""Tar archives that would lead out of their root, that are damaged or cut short, or that inflate without end."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import JobwattError, SourceError
from ingest.lake import Lake
from ingest.schemas import TABLES
from ingest.sources import archive, inflate
from ingest.synthetic import make_archive
from ingest.synthetic_files import pack
from tests.gpu_files import HEADER
from tests.small_sources import GPU_FILE, gpu_file, gpu_row, take, take_twice, write

ROWS = [gpu_row(i, 100 + i) for i in range(3)]
SOUND = [(0.0, 100.0), (1.0, 101.0), (2.0, 102.0)]
FORMS = [".tar", ".tar.gz", ".tar.zst"]


def tar_bytes(*members: tuple[tarfile.TarInfo | str, bytes], style: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def packed(tar: bytes, form: str) -> bytes:
    """A tar, compressed as its ending says."""
    if form == ".tar.gz":
        return gzip.compress(tar, mtime=0)
    return zstandard.ZstdCompressor().compress(tar) if form == ".tar.zst" else tar


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


SAMPLES = gpu_file(*ROWS).encode()
UNSAFE: list[tuple[str, tarfile.TarInfo | str]] = [
    ("../gpu/0001/102-n1.csv", "../gpu/0001/102-n1.csv"),
    ("gpu/../../102-n1.csv", "gpu/../../102-n1.csv"),
    ("/gpu/0001/102-n1.csv", "/gpu/0001/102-n1.csv"),
    ("gpu/0001/103-n1.csv", special("gpu/0001/103-n1.csv", tarfile.SYMTYPE, "/etc/passwd")),
    ("gpu/0001/104-n1.csv", special("gpu/0001/104-n1.csv", tarfile.LNKTYPE, GPU_FILE)),
    ("gpu/0001/105-n1.csv", special("gpu/0001/105-n1.csv", tarfile.CHRTYPE)),
    ("gpu/0001/106-n1.csv", special("gpu/0001/106-n1.csv", tarfile.FIFOTYPE)),
]


@pytest.mark.parametrize("form", FORMS)
def test_members_that_lead_elsewhere_are_refused_one_by_one_and_the_others_are_taken(tmp_path, form):
    members = [(info, SAMPLES if isinstance(info, str) else b"") for _, info in UNSAFE]
    tar = tar_bytes(*members[:3], (GPU_FILE, SAMPLES), *members[3:])
    source = write(tmp_path, f"in{form}", packed(tar, form))
    taken = take_twice(source, tmp_path / "lake")
    assert taken.refused() == sorted((name, "unsafe_member", 0) for name, _ in UNSAFE)
    assert taken.powers() == SOUND
    assert not list(tmp_path.rglob("*102-n1*"))


def test_links_in_a_folder_are_refused_and_not_followed(tmp_path):
    write(tmp_path, "elsewhere/gpu/0002/102-n1.csv", SAMPLES)
    write(tmp_path, f"in/{GPU_FILE}", SAMPLES)
    (tmp_path / "in/gpu/0001/102-n1.csv").symlink_to(tmp_path / "elsewhere/gpu/0002/102-n1.csv")
    (tmp_path / "in/gpu/0002").symlink_to(tmp_path / "elsewhere/gpu/0002")
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [("gpu/0001/102-n1.csv", "unsafe_member", 0), ("gpu/0002", "unsafe_member", 0)]
    assert taken.powers() == SOUND


@pytest.mark.parametrize("form", FORMS)
def test_of_two_members_of_one_name_the_first_is_taken(tmp_path, form):
    other = gpu_file(*[gpu_row(i, 500) for i in range(9)]).encode()
    source = write(tmp_path, f"in{form}", packed(tar_bytes((GPU_FILE, SAMPLES), (f"./{GPU_FILE}", other)), form))
    taken = take_twice(source, tmp_path / "lake")
    assert taken.refused() == [(GPU_FILE, "repeated_member", 0)]
    assert taken.powers() == SOUND


@pytest.mark.parametrize("form", FORMS)
def test_a_member_over_the_limit_is_refused(tmp_path, form):
    large = gpu_file(*[gpu_row(i) for i in range(40)]).encode()
    source = write(tmp_path, f"in{form}", packed(tar_bytes((GPU_FILE, SAMPLES), ("gpu/0001/102-n1.csv", large)), form))
    taken = take_twice(source, tmp_path / "lake", max_member_bytes=1000)
    assert ("gpu/0001/102-n1.csv", "too_large", 0) in taken.refused()
    assert taken.powers() == SOUND


@pytest.mark.parametrize("form", [".tar.gz", ".tar.zst"])
def test_an_archive_that_inflates_too_far_is_read_up_to_there(tmp_path, monkeypatch, form):
    monkeypatch.setattr(inflate, "INFLATION_FREE_BYTES", 200_000)
    bomb = b" " * 20_000_000
    tar = tar_bytes((GPU_FILE, SAMPLES), ("gpu/0001/102-n1.csv", HEADER.encode() + bomb), ("README.md", b"x"))
    source = write(tmp_path, f"in{form}", packed(tar, form))
    taken = take_twice(source, tmp_path / "lake")
    assert (source.name, "too_large", 0) in taken.refused()
    assert ("gpu/0001/102-n1.csv", "too_large", 0) in taken.refused()
    assert taken.powers() == SOUND


def test_a_compressed_member_of_a_compressed_archive_is_held_to_the_limit_too(tmp_path):
    large = gzip.compress(gpu_file(*[gpu_row(i) for i in range(400)]).encode())
    tar = tar_bytes((f"{GPU_FILE}.gz", gzip.compress(SAMPLES)), ("gpu/0001/102-n1.csv.gz", large))
    source = write(tmp_path, "in.tar.gz", packed(tar, ".tar.gz"))
    taken = take_twice(source, tmp_path / "lake", max_member_bytes=10_000)
    assert taken.refused() == [("gpu/0001/102-n1.csv", "too_large", 0)]
    assert taken.powers() == SOUND


# -- cut short ---------------------------------------------------------------------------------------------------------


def three_files() -> tuple[bytes, list[int]]:
    """A tar of three files of 2000 rows each, and where each file's bytes begin."""
    rng = np.random.default_rng(1)
    watts = [[f"{w:.2f}" for w in rng.uniform(50, 300, 2000)] for _ in range(3)]
    files = [gpu_file(*[gpu_row(i, w) for i, w in enumerate(each)]).encode() for each in watts]
    tar = tar_bytes(*[(f"gpu/0001/{101 + i}-n1.csv", file) for i, file in enumerate(files)], style=tarfile.USTAR_FORMAT)
    return tar, [tar.index(file) for file in files]


@pytest.mark.parametrize("form", FORMS)
def test_of_an_archive_cut_inside_a_file_all_whole_lines_before_the_cut_are_kept(tmp_path, form):
    tar, starts = three_files()
    if form == ".tar":
        cut = kept = tar[: starts[1] + 7001]
    else:
        cut = packed(tar, form)[: len(packed(tar, form)) // 2]
        kept = readable(cut, form)
    source = write(tmp_path, f"in{form}", cut)
    taken = take_twice(source, tmp_path / "lake")
    assert starts[1] + 1000 < len(kept) < starts[2]
    inside = kept[starts[1] :].decode()
    whole = inside.count("\n") - 1
    counts = {job: taken.lake.read_series(job).height for job in (101, 102, 103)}
    assert counts == {101: 2000, 102: whole, 103: 0}
    assert (f"in{form}", "truncated", 0) in taken.refused()
    last = inside.rpartition("\n")[2]
    assert ("gpu/0001/102-n1.csv", whole + 2, "truncated", last) in taken.rejected()
    assert taken.report.partial


def readable(cut: bytes, form: str) -> bytes:
    """What the decompressors' own libraries get out of a stream that was cut short."""
    if form == ".tar.gz":
        return zlib.decompressobj(wbits=31).decompress(cut)
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(cut)).read()


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_cut_between_two_files_is_not_taken_for_a_whole_one(tmp_path, form):
    tar, starts = three_files()
    source = write(tmp_path, f"in{form}", packed(tar[: starts[2] - 512], form))
    taken = take_twice(source, tmp_path / "lake")
    assert taken.refused() == [(f"in{form}", "truncated", 0)]
    assert {job: taken.lake.read_series(job).height for job in (101, 102, 103)} == {101: 2000, 102: 2000, 103: 0}


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_archive_in_place_of_the_cut_one_brings_the_rest_and_removes_the_refusal(tmp_path, form):
    tar, starts = three_files()
    source = write(tmp_path, f"in{form}", packed(tar[: starts[1] + 5000], form))
    take(source, tmp_path / "lake")
    source.write_bytes(packed(tar, form))
    taken = take_twice(source, tmp_path / "lake")
    assert (taken.report.files_unchanged, taken.report.rows_unchanged, taken.report.rows_out) == (1, 2000, 4000)
    assert (taken.refused(), taken.rejected(), taken.report.partial) == ([], [], False)


def test_an_archive_with_a_damaged_header_is_read_up_to_there(tmp_path):
    tar, starts = three_files()
    damaged = bytearray(tar)
    damaged[starts[1] - 400] ^= 0xFF
    taken = take_twice(write(tmp_path, "in.tar", bytes(damaged)), tmp_path / "lake")
    assert taken.refused() == [("in.tar", "truncated", 0)]
    assert {job: taken.lake.read_series(job).height for job in (101, 102, 103)} == {101: 2000, 102: 0, 103: 0}


def with_said_size(name: str, size: str, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A member after an extended header (its own, or one for all that follow) that says another size of it."""
    buffer = io.BytesIO()
    said = {"size": size}
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=said if kind == tarfile.XGLTYPE else {}
    ) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(SAMPLES)
        info.pax_headers = said if kind == tarfile.XHDTYPE else {}
        tar.addfile(info, io.BytesIO(SAMPLES))
    return buffer.getvalue()


@pytest.mark.parametrize("size", ["-1", "-512", "-1536", "-99999999", "-99999999999999999999"])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE], ids=["own", "global"])
@pytest.mark.parametrize("form", FORMS)
def test_a_member_of_less_than_no_bytes_ends_the_archive(tmp_path, form, kind, size):
    end = 2 * tarfile.BLOCKSIZE
    sound = tar_bytes((GPU_FILE, SAMPLES)).rstrip(b"\0")
    sound += b"\0" * (-len(sound) % tarfile.BLOCKSIZE)
    source = write(
        tmp_path, f"in{form}", packed(sound + with_said_size("gpu/0001/102-n1.csv", size, kind) + b"\0" * end, form)
    )
    listing = archive.list_members(str(source))
    assert [member.name for member in listing.members] == [GPU_FILE]
    assert [(name, reason) for name, reason, _ in listing.refused] == [(source.name, "truncated")]
    assert take_twice(source, tmp_path / "lake").powers() == SOUND


def test_an_archive_that_is_nothing_but_extended_headers_is_an_error_in_one_line(tmp_path):
    header = with_said_size("x.csv", "1")[: 2 * tarfile.BLOCKSIZE]
    source = write(tmp_path, "in.tar", header * 5000)
    with pytest.raises(SourceError, match="cannot be read as a tar archive"):
        take(source, tmp_path / "lake")


def test_a_header_that_asks_for_much_memory_ends_the_archive(tmp_path):
    greedy = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    greedy.size = 2**33
    member = tar_bytes((GPU_FILE, SAMPLES), style=tarfile.USTAR_FORMAT).rstrip(b"\0")
    tar = member + b"\0" * (-len(member) % 512) + greedy.tobuf() + b"\0" * 2048
    taken = take_twice(write(tmp_path, "in.tar", tar), tmp_path / "lake")
    assert taken.refused()[0][:2] == ("in.tar", "truncated")
    assert taken.powers() == SOUND


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", [b"", b"no archive at all", b"\0" * 2048])
def test_what_is_no_archive_is_an_error_in_one_line(tmp_path, form, content):
    source = write(tmp_path, f"in{form}", content)
    with pytest.raises(SourceError, match=r"cannot be read as a tar archive|no table of"):
        take(source, tmp_path / "lake")
    assert not (tmp_path / "lake").exists()


@given(st.data())
def test_a_damaged_archive_is_never_more_than_a_jobwatt_error(tmp_path_factory, data):
    form = data.draw(st.sampled_from(FORMS))
    content = bytearray(packed(tar_bytes((GPU_FILE, SAMPLES), ("labelled_jobids.csv", b"id,model\n101,a\n")), form))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    source = write(tmp_path_factory.mktemp("damaged"), f"in{form}", bytes(content[: data.draw(st.integers(1, 20_000))]))
    try:
        listing = archive.list_members(str(source))
        if form == ".tar":
            for member in listing.members:
                with archive.open_member(member) as stream:
                    drain(stream)
        else:
            for _, stream in archive.stream_members(str(source), listing.members, anonymous=False):
                drain(stream)
    except JobwattError:
        return


def drain(stream: inflate.ByteStream) -> None:
    try:
        while stream.read(100):
            pass
    except (inflate.TruncatedError, inflate.TooLargeError):
        return


# -- forms of one source -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An archive with samples, logs, labels, an unknown file, a bad name and bad rows."""
    root = tmp_path_factory.mktemp("forms") / "in"
    make_archive(root, rng=5, n_jobs=4, seconds_per_job=8.0, requeued_jobs=1, cpu_only_jobs=1)
    write(root, "gpu/0001/9000001-n9.csv", gpu_file(*ROWS, gpu_row(2, 7), gpu_row(5, "x")))
    write(root, "gpu/0001/nonsense.csv", SAMPLES)
    write(root, "unknown.csv", "a,b\n1,2\n\n3,4")
    write(root, "gpu/0001/9000002-n9.csv", b"")
    return root


def tables(lake: Path) -> dict[str, pl.DataFrame]:
    """All tables of a lake in an order of their own."""
    opened = Lake(lake)
    frames = {name: opened.scan(name).collect() for name in TABLES}
    return {name: frame.sort(frame.columns, nulls_last=False) for name, frame in frames.items()}


@pytest.fixture(scope="module")
def as_folder(folder, tmp_path_factory) -> Path:
    """The lake of the folder."""
    lake = tmp_path_factory.mktemp("forms") / "lake"
    take_twice(folder, lake)
    return lake


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_and_its_archives_make_the_same_tables_and_are_the_same_input(tmp_path, folder, as_folder, form):
    source = pack(folder, tmp_path / f"in{form}")
    lake = tmp_path / "lake"
    first = take_twice(source, lake)
    here, there = tables(lake), tables(as_folder)
    for name in there:
        assert here[name].equals(there[name]), name
    again = take(folder, lake)
    assert again.report.generation == first.report.generation
    assert again.report.rows_unchanged == again.report.rows_in == first.report.rows_in


def test_folders_above_the_root_do_not_matter(tmp_path, folder, as_folder):
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(folder, arcname="release/v1/data")
    source = write(tmp_path, "packed.tar.gz", packed((tmp_path / "in.tar").read_bytes(), ".tar.gz"))
    taken = take_twice(source, tmp_path / "lake")
    here, there = tables(tmp_path / "lake"), tables(as_folder)
    for name in there:
        assert here[name].equals(there[name]), name
    assert taken.report.rows_in > 0
    assert taken.report.ignored_files == []
