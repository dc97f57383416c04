import os
import stat
from pathlib import Path

import pytest
from tests.fakes.user_api import completed, job_status

ANSWERS = '{"custom_id": "a", "text": "one\u2028line"}\n'.encode()


@pytest.fixture
def ended(plane):
    plane.jobs["job-1"] = [
        completed(requests={"total": 2, "completed": 1, "failed": 1}, error_file_id="file-e")
    ]
    plane.outputs["job-1"] = ANSWERS
    plane.error_files["job-1"] = b'{"custom_id": "b"}\n'
    return plane


def test_to_stdout_byte_for_byte(ended, tandemn):
    result = tandemn("download", "job-1")
    assert result.out.encode() == ANSWERS
    assert result.err == "1 request failed: -o OUT fetches their error lines too\n"


def test_to_a_file_that_is_replaced(ended, tmp_path, tandemn):
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    out.chmod(0o600)
    result = tandemn("download", "job-1", "-o", out)
    assert (result.code, result.out) == (0, "")
    assert out.read_bytes() == ANSWERS
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert (tmp_path / "out.jsonl.errors.jsonl").read_bytes() == b'{"custom_id": "b"}\n'


def test_stale_error_lines_are_not_left_beside_new_answers(plane, tmp_path, tandemn):
    plane.jobs["job-1"] = [completed()]
    stale = tmp_path / "out.errors.jsonl"
    stale.write_text("old")
    assert tandemn("download", "job-1", "-o", tmp_path / "out").code == 0
    assert not stale.exists()


def test_new_file_has_the_usual_permissions(ended, tmp_path, tandemn):
    mask = os.umask(0o027)
    try:
        tandemn("download", "job-1", "-o", tmp_path / "out")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_a_link_keeps_its_place(ended, tmp_path, tandemn):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tandemn("download", "job-1", "-o", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == ANSWERS


def test_a_device_is_written_to_and_not_replaced(ended, tandemn):
    assert tandemn("download", "job-1", "-o", "/dev/null").code == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert not Path("/dev/null.errors.jsonl").exists()


def test_broken_download_leaves_the_old_file(ended, tmp_path, tandemn):
    out = tmp_path / "out"
    out.write_text("old")
    ended.breaks_output_at = 10
    result = tandemn("download", "job-1", "-o", out)
    assert result.code == 1
    assert "[server_unavailable]" in result.err
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_running_job_gives_only_what_is_finished(plane, tandemn):
    plane.jobs["job-1"] = [job_status()]
    plane.outputs["job-1"] = ANSWERS
    result = tandemn("download", "job-1")
    assert result.code == 2
    assert "[not_ended]" in result.err
    assert tandemn("download", "job-1", "--partial").out.encode() == ANSWERS


def test_folder_that_is_missing_is_told_first(tmp_path, home, tandemn):
    result = tandemn("download", "job-1", "-o", tmp_path / "none" / "out")
    assert result.code == 2
    assert "[invalid_output]" in result.err
    assert not home.exists()
