from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fake_watch import flags

from memguard.errors import MemguardError, MemguardWarning
from memguard.report.private import KEY_FILE, HashedIds, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _wide_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("content", [b"\x00bytes", "täxt", "", pl.DataFrame({"a": [1, 2]})])
def test_written_whole_and_for_the_owner_only(tmp_path, content):
    path = write_private(tmp_path / "new" / "deep" / "file", content)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    if isinstance(content, pl.DataFrame):
        assert pl.read_parquet(path).equals(content)
    else:
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_never_wider_at_any_moment(tmp_path, monkeypatch):
    seen = []
    write = os.write

    def spy(handle, data):
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return write(handle, data[:7])  # short writes must be carried on

    monkeypatch.setattr(os, "write", spy)
    path = write_private(tmp_path / "file", b"x" * 30)
    assert path.read_bytes() == b"x" * 30
    assert set(seen) == {0o600}
    assert len(seen) == 5


def test_a_wider_file_is_replaced_and_its_readers_keep_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    with path.open() as open_before:
        write_private(path, "new")
        assert open_before.read() == "old"
    assert path.read_text() == "new"
    assert mode(path) == 0o600


def test_a_link_is_replaced_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "file").symlink_to(victim)
    write_private(tmp_path / "file", "new")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()


@pytest.mark.parametrize("step", ["write", "open", "fsync", "close", "fchmod"])
def test_a_full_or_read_only_disk_warns_and_leaves_nothing(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_text("old")
    real = getattr(os, step)

    def refuse(*args, **kwargs):
        if step == "close":
            real(*args)
        raise OSError(errno.ENOSPC if step != "open" else errno.EROFS, "No space left on device")

    monkeypatch.setattr(os, step, refuse)
    with pytest.warns(MemguardWarning, match="was not written .No space left"):
        assert write_private(path, "new") is None
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_passes_and_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_private(tmp_path / "file", "new")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file_and_file_that_is_a_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "taken" / "file", tmp_path / "taken" / "deep" / "file", tmp_path / "folder"):
        with pytest.warns(MemguardWarning, match="was not written"):
            assert write_private(path, "x") is None
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder", "taken"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.warns(MemguardWarning, match="Permission denied"):
        assert write_private(tmp_path / "file", "x") is None
    tmp_path.chmod(0o700)


def test_hash_is_keyed_stable_and_blind_to_the_integer_type():
    one, other = HashedIds(b"k" * 16), HashedIds(b"j" * 16)
    assert one([7]) == one(["7"]) == one(np.array([7], np.int32)) == one([np.int64(7)]) == one([b"7"])
    assert one([7]) != other([7])
    assert HashedIds()([7]) != HashedIds()([7])
    assert len(set(one(range(5000)))) == 5000
    assert all(len(digest) == 16 for digest in one(["a"]))
    assert "kkkk" not in repr(one)


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 65])
def test_bad_keys_and_ids_are_refused(key):
    with pytest.raises(MemguardError, match="key"):
        HashedIds(key)
    with pytest.raises(MemguardError, match="None"):
        HashedIds()(["a", None])


def test_key_file_is_made_once_and_private(tmp_path):
    first = HashedIds.in_folder(tmp_path / "out")
    path = tmp_path / "out" / KEY_FILE
    kept = path.read_bytes()
    assert mode(path) == 0o600
    assert HashedIds.in_folder(tmp_path / "out")(["a"]) == first(["a"])
    assert path.read_bytes() == kept
    assert HashedIds.in_folder(tmp_path / "else")(["a"]) != first(["a"])
    assert [p.name for p in path.parent.iterdir()] == [KEY_FILE]


def test_the_key_of_the_faster_process_counts(tmp_path, monkeypatch):
    link = os.link

    def late(source, target):
        Path(target).write_text("ab" * 32)
        Path(target).chmod(0o600)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert HashedIds.in_folder(tmp_path)(["a"]) == HashedIds(bytes.fromhex("ab" * 32))(["a"])
    assert [p.name for p in tmp_path.iterdir()] == [KEY_FILE]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first = HashedIds.in_folder(tmp_path)
    assert mode(tmp_path / KEY_FILE) == 0o600
    assert first(["a"]) == HashedIds.in_folder(tmp_path)(["a"])


@pytest.mark.parametrize("content", ["", "zz", "ab" * 31])
def test_a_damaged_key_gives_a_warning_and_a_fresh_key(tmp_path, content):
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.warns(MemguardWarning, match="will not match"):
        assert len(HashedIds.in_folder(tmp_path)(["a"])[0]) == 16
    assert (tmp_path / KEY_FILE).read_text() == content


def test_a_key_that_others_can_read_is_closed_and_said(tmp_path):
    (tmp_path / KEY_FILE).write_text("ab" * 32)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.warns(MemguardWarning, match="could be read by other users"):
        HashedIds.in_folder(tmp_path)
    assert mode(tmp_path / KEY_FILE) == 0o600


def test_no_folder_for_the_key(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.warns(MemguardWarning, match="cannot be used"):
        assert HashedIds.in_folder(tmp_path / "taken" / "out").source == "random, kept in memory only"


def test_flags_survive_parquet(tmp_path):
    frame = flags(200, 40, 8)
    assert pl.read_parquet(write_private(tmp_path / "flags.parquet", frame)).equals(frame)
