import pytest

from tandemn.batch.answers import decode_segment
from tandemn.errors import LeaseLost
from tandemn.fleet import remains
from tandemn.runner.block_reader import read_blocks
from tandemn.runner.spool import Spool


def test_lines_come_back_in_input_order_whatever_the_order_of_the_answers(tmp_path):
    spool = Spool(tmp_path / "spool", 5)
    for index in (3, 0, 4):
        assert spool.append(index, b'{"n":%d}' % index, is_error=False)
    assert spool.append(1, b'{"error":1}', is_error=True)
    assert not spool.append(3, b'{"late":1}', is_error=False)
    assert (spool.answers, spool.errors, spool.count) == (3, 1, 4)
    answers = b"".join(spool.ordered(errors=False))
    assert answers == b'{"n":0}\n{"n":3}\n{"n":4}\n'
    assert b"".join(spool.ordered(errors=True)) == b'{"error":1}\n'
    assert len(answers) == spool.object_size(errors=False)
    spool.close()


def test_a_slice_between_two_sizes_is_a_segment(tmp_path):
    spool = Spool(tmp_path / "spool", 3)
    spool.append(2, b'{"a":1}', is_error=False)
    middle = spool.size
    spool.append(0, b'{"b":1}', is_error=True)
    (answer,) = decode_segment(spool.read(middle, spool.size))
    assert (answer.index, answer.kind, answer.line) == (0, "e", b'{"b":1}')
    spool.close()


def test_what_a_killed_runner_had_can_be_counted(tmp_path):
    spool = Spool(tmp_path / "7-1-5.part", 4)
    spool.append(2, b"{}", is_error=False)
    assert list(remains.read(tmp_path)) == [], "not before it knows what earlier holders had lost"
    spool.publish(remains.file_name(7, "1-5", 3))
    spool.append(0, b"{}", is_error=True)
    # Nothing was closed or flushed.
    [found] = remains.read(tmp_path)
    assert found == remains.Remains(chunk=7, token="1-5", had=2, recomputed=3)
    spool.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LeaseLost):
        spool.append(1, b"{}", is_error=False)


def test_a_closed_spool_leaves_no_file_and_says_that_the_lease_is_gone(tmp_path):
    spool = Spool(tmp_path / "spool", 1)
    spool.append(0, b"{}", is_error=False)
    spool.close()
    spool.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LeaseLost):
        spool.read(0, 1)
    with pytest.raises(LeaseLost):
        list(spool.ordered(errors=False))


@pytest.mark.parametrize("block_bytes", [1, 7, 100])
async def test_blocks_are_read_in_order_and_at_most_one_ahead(block_bytes):
    content = bytes(range(50))
    asked = []

    async def fetch(start, end):
        asked.append((start, end))
        return content[start:end]

    got = b""
    async for block in read_blocks(fetch, 5, 45, block_bytes=block_bytes):
        got += block
        assert sum(end - start for start, end in asked) <= len(got) + block_bytes
    assert got == content[5:45]
