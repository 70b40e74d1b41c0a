"""The folder of a run: one run at a time, and its files after a kill."""

import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from ibreg.runs.folder import CHECKPOINTS, CONFIG, LOCK, FolderConfig, open_folder


class OneProcess:
    """What `open_folder` asks of an accelerator."""

    is_main_process = True

    @contextmanager
    def main_process_first(self):
        yield


class Keys(FolderConfig):
    lr: float = 0.1


def settings(folder, **options):
    return Keys(**{"output_dir": str(folder), "resume": False, "overwrite": False, **options})


HOLDER = """
import sys, time
from pathlib import Path
from filelock import FileLock
with FileLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path, option):
    with open_folder(settings(tmp_path / "run"), OneProcess()) as folder:
        assert {path.name for path in folder.iterdir()} == {CONFIG, CHECKPOINTS, LOCK}
        before = (folder / CONFIG).read_bytes()
    again = settings(folder, **{option: True})
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder / LOCK)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(FileExistsError, match=r"another run is going on in .*run: wait"),
        open_folder(again, OneProcess()),
    ):
        pass
    assert (folder / CONFIG).read_bytes() == before
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    with open_folder(again, OneProcess()):
        assert (folder / CHECKPOINTS).is_dir()


def test_the_lock_is_held_to_the_end_and_released_on_an_error(tmp_path):
    cfg = settings(tmp_path / "run", resume=True)

    def run():
        with open_folder(cfg, OneProcess()):
            with pytest.raises(FileExistsError, match="going on"), open_folder(cfg, OneProcess()):
                pass
            raise RuntimeError("stop")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="stop"):
            run()


def test_other_processes_neither_lock_nor_write(tmp_path):
    other = OneProcess()
    other.is_main_process = False
    with open_folder(settings(tmp_path / "run"), other) as folder:
        assert folder == tmp_path / "run"
        assert not folder.exists()


def test_the_folder_of_a_run_killed_at_its_start_can_be_used(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / f"{CONFIG}.partial").write_text("half")
    with open_folder(settings(tmp_path), OneProcess()) as folder:
        assert (folder / CONFIG).read_text().endswith("lr: 0.1\n")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with (
        pytest.raises(FileExistsError, match="holds files, but no run"),
        open_folder(settings(tmp_path, overwrite=True), OneProcess()),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"), open_folder(settings(tmp_path / "file"), OneProcess()):
        pass
