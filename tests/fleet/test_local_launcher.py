import subprocess
import sys
import threading

from tandemn.fleet.launchers.local import LocalLauncher


def test_the_end_of_a_runner_is_told(tmp_path):
    ended = threading.Event()
    launcher = LocalLauncher(tmp_path, 1, on_end=ended.set)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watching = threading.Thread(target=launcher._await_end, args=(process,))
    watching.start()
    assert not ended.is_set()
    process.communicate(b"\n")
    assert ended.wait(30)
    watching.join()
