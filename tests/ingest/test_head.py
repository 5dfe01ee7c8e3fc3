from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ingest import head as heads
from ingest.errors import LakeBusyError, LakeError
from ingest.head import (
    FORMAT,
    SCHEMA_VERSION,
    Head,
    LakePart,
    finish_moves,
    read_head,
    write_head,
    writing,
)


def stage(root: Path, generation: int, names: list[str], removes: tuple[str, ...] = ()) -> Head:
    """Put files into a run's staging folder and return the state that would take them; the file says its name."""
    parts, moves = [], {}
    for name in names:
        final = f"jobs/cluster=one/{name}"
        staged = f"_staging/run-7/jobs/{name}"
        (root / staged).parent.mkdir(parents=True, exist_ok=True)
        (root / staged).write_text(name)
        parts.append(LakePart("jobs", "one", final, 1, len(name)))
        moves[final] = staged
    return Head(generation, tuple(parts), "", "", moves, removes)


def texts(root: Path, head: Head) -> list[str]:
    """Return what the parts of a state hold, wherever they are now."""
    return [head.path(root, part).read_text() for part in head.parts]


def commit(root: Path, head: Head) -> Head:
    """Commit and do what is due."""
    return finish_moves(root, write_head(root, head))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A lake whose first state is committed, with its one part in place."""
    commit(tmp_path / "lake", stage(tmp_path / "lake", 1, ["a"]))
    return tmp_path / "lake"


# -- reading -----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(root):
    state = stage(root, 2, ["b", "c"], removes=("jobs/cluster=one/a",))
    written = write_head(root, state)
    assert read_head(root) == written
    assert (written.parts, written.removes) == (state.parts, state.removes)
    assert finish_moves(root, written) == read_head(root) == Head(2, state.parts)


@pytest.mark.parametrize("where", ["nothing", "an empty folder", "a file"])
def test_what_is_no_lake_is_said_with_the_command_that_makes_one(where, tmp_path):
    path = tmp_path / "lake"
    if where == "an empty folder":
        path.mkdir()
    elif where == "a file":
        path.write_text("")
    with pytest.raises(
        LakeError, match=rf"^{path} is no lake .*; make one with: jobwatt lake ingest PATH --lake {path}$"
    ):
        read_head(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"format": 2, "schema_version": 0},
            "ingest its sources again into a new lake: jobwatt lake ingest PATH --lake",
        ),
        ({"format": FORMAT - 1}, "ingest its sources again into a new lake: jobwatt lake ingest PATH --lake"),
        ({"schema_version": SCHEMA_VERSION + 1}, r"a newer jobwatt: update this one \(`jobwatt --version`"),
        ({"format": FORMAT + 1, "schema_version": 0}, r"a newer jobwatt: update this one \(`jobwatt --version`"),
    ],
)
def test_another_version_is_refused_with_what_helps(change, says, root):
    path = root / "_manifest" / "HEAD.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for use in (read_head, lambda root: writing(root).__enter__()):
        with pytest.raises(LakeError, match=says):
            use(root)
    assert texts(root, Head(parts=(LakePart("jobs", "one", "jobs/cluster=one/a", 1, 1),))) == ["a"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', "\x00\xff"])
def test_a_damaged_head_is_refused_in_one_line(content, root):
    (root / "_manifest" / "HEAD.json").write_text(content, encoding="latin-1")
    with pytest.raises(
        LakeError, match=r"HEAD.json cannot be read \(.+\); restore it from a backup, or ingest the sources"
    ):
        read_head(root)


# -- committing --------------------------------------------------------------------------------------------------------


def test_a_reader_follows_the_moves_that_are_still_due(root):
    head = write_head(root, stage(root, 2, ["b", "c"]))
    assert not (root / "jobs/cluster=one/b").exists()
    assert texts(root, head) == ["b", "c"]
    (root / head.moves["jobs/cluster=one/b"]).replace(root / "jobs/cluster=one/b")
    assert texts(root, head) == ["b", "c"]
    finish_moves(root, head)
    assert texts(root, head) == ["b", "c"]
    assert not list((root / "_staging").iterdir())


def test_a_run_that_is_cleaned_up_after_its_commit_takes_nothing_away(root):
    head = write_head(root, stage(root, 2, ["b"]))
    assert not (root / "_staging" / "run-7").exists()
    assert texts(root, head) == ["b"]


def test_moves_can_be_finished_from_the_state_as_it_was_handed_in(root):
    state = stage(root, 2, ["b"])
    write_head(root, state)
    assert finish_moves(root, state) == read_head(root)
    assert texts(root, read_head(root)) == ["b"]


def test_finishing_twice_is_harmless(root):
    head = write_head(root, stage(root, 2, ["b"], removes=("jobs/cluster=one/a",)))
    assert finish_moves(root, head) == finish_moves(root, head)
    assert sorted(path.name for path in (root / "jobs/cluster=one").iterdir()) == ["b"]


@pytest.mark.parametrize("generation", [1, 3])
def test_a_state_that_does_not_follow_the_committed_one_is_refused(generation, root):
    state = stage(root, generation, ["b"])
    with pytest.raises(LakeError, match=f"is at generation 1, this run started from {generation - 1}: somebody else"):
        write_head(root, state)
    assert read_head(root).generation == 1
    assert (root / "_staging/run-7/jobs/b").read_text() == "b"


def test_files_staged_in_two_folders_are_a_wrong_argument(root):
    state = stage(root, 2, ["b"])
    for other in ("_staging/run-8/jobs/b", "elsewhere/run-7/jobs/b"):
        with pytest.raises(ValueError, match="stage them in one folder below _staging"):
            write_head(root, Head(2, moves={**state.moves, "jobs/cluster=one/c": other}))
    assert read_head(root).generation == 1


def fill_disk_at(n: int, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the n-th call of ``owner.name`` find no room."""
    real, calls = getattr(owner, name), []

    def call(*args: Any, **named: Any) -> Any:
        calls.append(args)
        if len(calls) == n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **named)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("step", ["the temporary head", "taking the staged files", "the folders", "the head"])
def test_a_commit_that_fails_leaves_the_lake_and_the_staged_files_as_they_were(step, root, monkeypatch):
    state = stage(root, 2, ["b"])
    with monkeypatch.context() as patch:
        if step == "the temporary head":
            fill_disk_at(1, os, "fsync", patch)
        elif step == "the folders":
            fill_disk_at(2, heads, "sync_folder", patch)
        else:
            fill_disk_at(1 if step == "taking the staged files" else 2, Path, "replace", patch)
        with pytest.raises(OSError, match="No space left"):
            write_head(root, state)
    assert read_head(root).generation == 1
    assert texts(root, read_head(root)) == ["a"]
    assert (root / "_staging/run-7/jobs/b").read_text() == "b"
    assert [path.name for path in (root / "_manifest").iterdir()] == ["HEAD.json"]
    assert texts(root, commit(root, state)) == ["b"]


@pytest.mark.parametrize("step", ["a folder", "a move", "the head"])
def test_what_fails_after_the_commit_is_said_and_the_next_writer_finishes_it(step, root, monkeypatch):
    head = write_head(root, stage(root, 2, ["b", "c"], removes=("jobs/cluster=one/a",)))
    with monkeypatch.context() as patch:
        if step == "a folder":
            fill_disk_at(1, Path, "mkdir", patch)
        else:
            fill_disk_at(2 if step == "a move" else 3, Path, "replace", patch)
        with pytest.raises(LakeError, match=r"generation 2 is committed, but not all .* \(No space left on device\)"):
            finish_moves(root, head)
    assert texts(root, read_head(root)) == ["b", "c"]
    with writing(root) as found:
        assert found == Head(2, head.parts)
    assert sorted(path.name for path in (root / "jobs/cluster=one").iterdir()) == ["b", "c"]
    assert sorted(path.name for path in root.iterdir()) == ["_manifest", "jobs"]


def test_a_staged_file_that_is_gone_is_not_taken_for_done(root):
    head = write_head(root, stage(root, 2, ["b", "c"]))
    (root / head.moves["jobs/cluster=one/b"]).unlink()
    with pytest.raises(LakeError, match=r"jobs/cluster=one/b is listed but missing; run: jobwatt lake check --lake"):
        finish_moves(root, head)
    assert read_head(root).moves


def test_every_step_of_a_commit_is_durable_before_the_next(root, monkeypatch):
    """What the system is asked to do, in order: names and contents first, then the rename that makes them count."""
    steps: list[str] = []
    real_fsync, real_replace, real_unlink = os.fsync, Path.replace, Path.unlink

    def fsync(handle: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().relative_to(root)}")
        real_fsync(handle)

    def replace(path: Path, target: Path) -> Path:
        steps.append(f"rename to {Path(target).relative_to(root)}")
        return real_replace(path, target)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        steps.append(f"remove {path.relative_to(root)}")
        real_unlink(path, missing_ok=missing_ok)

    state = stage(root, 2, ["b"], removes=("jobs/cluster=one/a",))
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    commit(root, state)
    assert steps == [
        "sync _manifest/HEAD.json.tmp",
        "rename to _staging/commit-000002",
        "sync _staging/commit-000002/jobs",
        "sync _staging/commit-000002",
        "sync _manifest",
        "sync _staging",
        "sync .",
        "rename to _manifest/HEAD.json",
        "sync _manifest",
        "rename to jobs/cluster=one/b",
        "sync jobs/cluster=one",
        "sync jobs",
        "sync .",
        "remove jobs/cluster=one/a",
        "sync jobs/cluster=one",
        "sync jobs",
        "sync .",
        "sync _manifest/HEAD.json.tmp",
        "rename to _manifest/HEAD.json",
        "sync _manifest",
    ]


def test_files_that_no_head_speaks_for_are_left_alone(root):
    """A folder of somebody else's tables, or a lake whose head was lost, must not be taken for a new lake."""
    (root / "jobs/cluster=one/a").rename(root / "jobs/cluster=one/a.parquet")
    (root / "_manifest" / "HEAD.json").unlink()
    before = sorted(root.rglob("*"))
    with pytest.raises(
        LakeError, match=r"has files such as jobs/cluster=one/a.parquet but no _manifest/HEAD.json; rest"
    ):
        writing(root).__enter__()
    assert sorted(root.rglob("*")) == before


# -- the lock ----------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_writes_and_gets_in_afterwards(root):
    with writing(root), pytest.raises(LakeBusyError, match=f"is being written by process {os.getpid()} on .* since 2"):
        writing(root).__enter__()
    with writing(root) as head:
        assert head.generation == 1


def test_readers_do_not_mind_a_writer(root):
    with writing(root):
        assert texts(root, read_head(root)) == ["a"]


def test_a_writer_who_fails_lets_go_and_leaves_the_lake_as_it_was(root):
    before = (root / "_manifest" / "HEAD.json").read_bytes()

    def fail() -> None:
        with writing(root):
            stage(root, 2, ["b"])
            (root / "_manifest" / "inputs-000002.parquet").write_text("not committed")
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert (root / "_manifest" / "HEAD.json").read_bytes() == before
    assert {path.name for path in (root / "_manifest").iterdir()} == {"HEAD.json", "LOCK"}
    assert not (root / "_staging").exists()
    with writing(root) as head:
        assert head.generation == 1


def test_a_writer_who_is_stopped_between_commit_and_moves_finishes_them_on_the_way_out(root):
    def stop() -> None:
        with writing(root):
            write_head(root, stage(root, 2, ["b"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert read_head(root) == Head(2, (LakePart("jobs", "one", "jobs/cluster=one/b", 1, 1),))
    assert (root / "jobs/cluster=one/b").read_text() == "b"


@pytest.mark.parametrize("existed", [True, False])
def test_a_first_writer_who_commits_nothing_leaves_nothing(existed, tmp_path):
    root = tmp_path / "lake"
    if existed:
        root.mkdir()
    with writing(root) as head:
        assert head == Head()
        stage(root, 1, ["a"])
    assert root.exists() == existed
    assert not existed or list(root.iterdir()) == []


def test_a_first_writer_who_commits_nothing_takes_only_what_is_the_lake_s(tmp_path):
    with writing(tmp_path / "lake"):
        (tmp_path / "lake" / "notes.txt").write_text("mine")
    assert [path.name for path in (tmp_path / "lake").iterdir()] == ["notes.txt"]


def test_a_lock_that_was_removed_while_waiting_for_it_counts_for_nothing(tmp_path, monkeypatch):
    """A first ingest that fails removes its lock file: who has opened it before must not take it for the lake's."""
    root = tmp_path / "lake"
    real, calls = fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        real(file, how)
        calls.append(how)
        if len(calls) == 1:
            (root / "_manifest" / "LOCK").unlink()
            (root / "_manifest").rmdir()

    monkeypatch.setattr(fcntl, "flock", flock)
    with writing(root):
        assert len(calls) == 2
        monkeypatch.undo()
        with pytest.raises(LakeBusyError):
            writing(root).__enter__()


def test_a_file_system_without_locks_is_said_in_one_line(tmp_path, monkeypatch):
    def flock(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(
        LakeError, match=r"its file system cannot lock files \(No locks available\); choose another, or"
    ):
        writing(tmp_path / "lake").__enter__()
