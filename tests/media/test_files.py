from __future__ import annotations

import errno
import os
import tempfile

import pytest

from ltxgen.media import check_free_space, check_writable, whole_file


def test_whole_file_appears_at_the_end(tmp_path):
    path = tmp_path / "result.txt"
    with whole_file(path) as partial:
        partial.write_text("all of it")
        assert partial.parent == tmp_path
        assert partial.suffix == ".txt"
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whole_file_leaves_nothing_when_it_fails(tmp_path, error):
    def fail():
        with whole_file(tmp_path / "result.txt") as partial:
            partial.write_text("half of")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_errors_name_the_file_that_was_wanted(tmp_path):
    def write_into_a_missing_folder():
        with whole_file(tmp_path / "missing" / "result.txt") as partial:
            partial.write_text("")

    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/missing/result\.txt'"):
        write_into_a_missing_folder()


def test_writable_folders_pass_and_stay_empty(tmp_path):
    assert check_writable(tmp_path) is None
    assert check_writable(tmp_path / "not" / "yet" / "there") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "notes").write_text("")
    for folder in (tmp_path / "notes", tmp_path / "notes" / "deeper"):
        assert f"'{tmp_path / 'notes'}' is a file" in check_writable(folder)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that even root can't write to")
def test_an_unwritable_folder_is_named():
    assert "'/proc/self' can't be written" in check_writable("/proc/self")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_permissions_count(tmp_path):
    tmp_path.chmod(0o500)
    assert "can't be written (Permission denied)" in check_writable(tmp_path)


def test_a_full_disk_is_not_writable(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    assert "No space left on device" in check_writable(tmp_path)


def test_free_space(tmp_path):
    assert check_free_space(tmp_path / "later", 1) is None
    message = check_free_space(tmp_path / "later", 2**62)
    assert f"the disk of '{tmp_path}' has" in message
    assert "4,398,046,511,104 MiB are needed" in message
