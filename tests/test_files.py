import errno
import os
import stat
import threading

import pytest

from alpa_serve.files import replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(path, content):
    with replacing(path) as file:
        file.write(content)


def fail(path, error):
    with replacing(path) as file:
        file.write(b"half")
        raise error


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with replacing(str(path)) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as caught:
        fail(path, error)
    assert caught.value is error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_a_link_stays_one_and_a_file_keeps_its_mode(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o604)
    link.symlink_to(real)
    write(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o604
    assert names(tmp_path) == ["link", "real"]


def test_a_new_file_has_the_mode_of_any_other(tmp_path):
    write(tmp_path / "ours", b"")
    (tmp_path / "any").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_two_writers_of_one_path_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "f"
    with replacing(path) as first:
        first.write(b"first")
        write(path, b"second")
        with pytest.raises(ValueError, match="third"), replacing(path):
            raise ValueError("third")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["f"]


def test_threads_may_write_one_path_at_once(tmp_path):
    path, failed = tmp_path / "f", []
    start = threading.Barrier(8)

    def run(number):
        start.wait()
        try:
            for _ in range(20):
                write(path, b"%d" % number * 1000)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(path.read_bytes()) == 1000
    assert len(set(path.read_bytes())) == 1
    assert names(tmp_path) == ["f"]


def test_an_error_names_the_path_that_was_given(tmp_path):
    absent = tmp_path / "absent" / "f"
    with pytest.raises(FileNotFoundError) as caught:
        write(absent, b"")
    assert str(caught.value) == f"[Errno {errno.ENOENT}] No such file or directory: '{absent}'"
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path}'$"):
        write(tmp_path, b"")
    with pytest.raises(OSError, match=r"No space left on device: '.*/f'$"):
        fail(tmp_path / "f", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(OSError, match=r"/f: disk full$"):
        fail(tmp_path / "f", OSError("disk full"))
    with pytest.raises(FileNotFoundError, match=r"'other'$"):
        fail(tmp_path / "f", FileNotFoundError(errno.ENOENT, "No such file or directory", "other"))
    assert names(tmp_path) == []


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write(pipe, b"through")
    reader.join()
    assert read == [b"through"]
    assert pipe.is_fifo()
