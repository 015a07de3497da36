"""What is on disk survives anything that happens to the process, and damage costs only what it hits."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runlog.delivery import frames, segment_reader, segments, spool_queue
from runlog.delivery.backlog import adopt
from runlog.delivery.batching import Batch
from runlog.delivery.frames import (
    DROPPED,
    EVENT,
    decode_header,
    encode_frame,
    encode_header,
    read_frames,
    scan,
)
from runlog.delivery.producer import Producer
from runlog.delivery.segment_reader import DAMAGED
from runlog.delivery.segments import SegmentName, SegmentWriter, sync_and_close
from runlog.delivery.spool import make_private_directory
from runlog.delivery.spool_queue import SpoolQueue
from runlog.records import DropMarker

PRODUCER = "0123456789abcdef0123"
OTHER = "f" * 20
ROOT_ONLY = pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root")


@pytest.fixture
def reports():
    return []


@pytest.fixture
def make(tmp_path, reports):
    made = []

    def make(directory=None, **changes):
        limits = {
            "max_batch_bytes": 1000,
            "batch_interval": 2.0,
            "max_spool_bytes": 10**9,
            "max_queue_bytes": 10_000,
        } | changes
        queue = SpoolQueue(
            directory or tmp_path / "spool",
            Producer(limits.pop("producer", PRODUCER), 7, b'{"service.name":"s"}'),
            report=lambda kind, text: reports.append((kind, text)),
            **limits,
        )
        made.append(queue)
        return queue

    yield make
    for queue in made:
        queue.abandon()


def drain(queue):
    batches = []
    while (batch := queue.take()) is not None:
        batches.append(batch)
    return batches


def read_back(batches, first=0):
    """Events by seq, None where one is marked, after checking that the ranges join."""
    found = []
    for batch in batches:
        assert batch.first_seq == first + len(found)
        events = iter(batch.events)
        covered = {m.seq + i for m in batch.dropped for i in range(m.count)}
        found += [
            None if seq in covered else next(events) for seq in range(batch.first_seq, batch.last_seq + 1)
        ]
        assert next(events, None) is None
    return found


# --- frames ---


def test_frames_follow_each_other():
    """Frames are read back in order, each with the offset behind it."""
    data = encode_header({"a": 1}) + encode_frame(5, EVENT, b"x") + encode_frame(6, DROPPED, b"{}")
    facts, offset = decode_header(data)
    assert facts == {"version": 1, "a": 1}
    assert [frame for frame, _ in scan(data, offset)] == [(5, EVENT, b"x"), (6, DROPPED, b"{}")]
    assert list(scan(data, offset))[-1][1] == len(data)


@given(st.lists(st.binary(max_size=40), max_size=8), st.binary(max_size=20))
def test_any_payload_between_any_rubbish(payloads, rubbish):
    """Rubbish between frames costs no frame, whatever it looks like, if it looks like none."""
    data = b""
    for seq, payload in enumerate(payloads):
        data += rubbish.replace(frames.FRAME_MAGIC, b"") + encode_frame(seq, EVENT, payload)
    assert [frame.payload for frame, _ in scan(data)] == payloads


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_reading_piece_by_piece(chunk):
    """Frames that lie across the pieces in which a file is read are found."""
    data = b"".join(encode_frame(i, EVENT, b"x" * i) for i in range(50))
    read = lambda offset, length: data[offset : offset + length]  # noqa: E731
    assert [frame.seq for frame, _ in read_frames(read, 0, len(data), chunk)] == list(range(50))
    assert [frame.seq for frame, _ in read_frames(read, 0, len(data) - 1, chunk)] == list(range(49))


def test_damage_longer_than_any_frame(monkeypatch):
    """A reader gets past any amount of damage."""
    monkeypatch.setattr(frames, "MAX_PAYLOAD_BYTES", 100)
    data = b"\0" * 5000 + encode_frame(1, EVENT, b"x") + b"\0" * 500
    read = lambda offset, length: data[offset : offset + length]  # noqa: E731
    assert [frame.seq for frame, _ in read_frames(read, 0, len(data), 16)] == [1]


def three_records(directory):
    writer = SegmentWriter(directory, SegmentName(PRODUCER, 0), {"resource": {}})
    for i, payload in enumerate([b'{"a":"one"}', b'{"b":"two \xc3\xbf"}', b'{"c":"three"}']):
        writer.append(i, EVENT, payload)
    writer.close()
    return writer.path


def what_is_left(directory):
    (backlog,) = adopt(directory)
    try:
        batches = []
        while (batch := backlog.take()) is not None:
            batches.append(batch)
        return read_back(batches)
    finally:
        backlog.close()


def test_any_byte_damaged(tmp_path):
    """Whichever byte is damaged, in whichever way: reading goes on, and only the record that it hits is lost."""
    path = three_records(tmp_path)
    good = path.read_bytes()
    header = decode_header(good)[1]
    bounds = [header, *(end for _, end in scan(good, header))]
    whole = what_is_left(tmp_path)
    for position in range(len(good)):
        for damage in (good[position] ^ 0xFF, 0x00, 0xFF, good[position] ^ 0x01):
            if damage == good[position]:
                continue
            path.write_bytes(good[:position] + bytes([damage]) + good[position + 1 :])
            hit = next((i for i in range(3) if bounds[i] <= position < bounds[i + 1]), None)
            expected = [None if i == hit else record for i, record in enumerate(whole)]
            while expected and expected[-1] is None:
                expected.pop()  # nothing says that there was a last one
            assert what_is_left(tmp_path) == expected, (position, damage)


def test_any_length_left(tmp_path):
    """Wherever the file is cut off, the records before are there."""
    path = three_records(tmp_path)
    good = path.read_bytes()
    ends = [end for _, end in scan(good, decode_header(good)[1])]
    whole = what_is_left(tmp_path)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert what_is_left(tmp_path) == whole[: sum(end <= length for end in ends)], length


# --- the queue ---


def test_events_come_back_in_order(make):
    """What was put is given out once, in batches that join."""
    queue = make(max_batch_bytes=25)
    for i in range(20):
        queue.add(b"%010d" % i, now=0.0)
    assert queue.held == 20
    batches = drain(queue)
    assert read_back(batches) == [b"%010d" % i for i in range(20)]
    assert [len(batch.events) for batch in batches] == [2] * 10
    for batch in batches:
        queue.settle(len(batch.events), batch.held_bytes)
    assert (queue.held, queue.first_seq, queue.next_seq) == (0, 20, 20)


def test_due(make):
    """Age and size make a batch due as they do in memory."""
    queue = make(max_batch_bytes=20)
    assert queue.next_due() is None
    assert queue.add(b"x" * 10, now=5.0) is True
    assert queue.next_due() == 7.0
    assert queue.add(b"x" * 10, now=6.0) is True
    assert queue.next_due() == float("-inf")
    assert queue.add(b"x" * 10, now=6.0) is False
    drain(queue)
    assert queue.next_due() is None


def test_files_are_private(make, tmp_path):
    """Nobody else can read what waits, even where the directory was open before."""
    (tmp_path / "spool").mkdir(mode=0o755)
    queue = make()
    queue.add(b"x", now=0.0)
    (path,) = (tmp_path / "spool").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    assert "spool" in repr(queue)


def test_segments_are_deleted_once_acknowledged(make, tmp_path, monkeypatch):
    """A full segment goes when all of it is acknowledged, the current one at the end."""
    monkeypatch.setattr(spool_queue, "SEGMENT_BYTES", 200)
    queue = make()
    for i in range(20):
        queue.add(b"%050d" % i, now=0.0)
    files = lambda: sorted(path.name for path in (tmp_path / "spool").iterdir())  # noqa: E731
    assert len(files()) > 3
    batches = drain(queue)
    queue.acknowledged(batches[0].first_seq)
    queue.clean()
    before = len(files())
    queue.acknowledged(19)
    queue.clean()
    assert len(files()) == 1 < before
    queue.close(19)
    assert files() == []
    assert queue.held_bytes == 0


def test_what_is_not_acknowledged_stays(make, tmp_path):
    """A queue that is closed leaves the rest to the next process, under the same identity."""
    queue = make()
    for i in range(3):
        queue.add(b"%d" % i, now=0.0)
    queue.take()
    queue.close(-1)
    (backlog,) = adopt(tmp_path / "spool")
    assert backlog.producer == Producer(PRODUCER, 7, b'{"service.name": "s"}')
    assert backlog.take() == Batch(0, (b"0", b"1", b"2"))
    assert backlog.take() is None
    backlog.acknowledged(1)
    assert backlog.size_bytes > 0
    backlog.acknowledged(2)
    assert backlog.size_bytes == 0
    assert list((tmp_path / "spool").iterdir()) == []
    backlog.close()


def test_a_living_owner_keeps_its_segments(make, tmp_path):
    """Nobody adopts what a process still writes; of two adopters one gets it."""
    queue = make()
    queue.add(b"x", now=0.0)
    assert adopt(tmp_path / "spool") == []
    queue.abandon()
    (first,) = adopt(tmp_path / "spool")
    assert adopt(tmp_path / "spool") == []
    first.close()
    (second,) = adopt(tmp_path / "spool")
    second.close()


def test_adoption_knows_what_it_does_not_know(tmp_path):
    """Links, other files and other users' files are left alone."""
    directory = tmp_path / "spool"
    assert adopt(directory) == []
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    (tmp_path / "target").write_bytes(b"secret")
    (directory / str(SegmentName(PRODUCER, 0))).symlink_to(tmp_path / "target")
    (directory / str(SegmentName(PRODUCER, 1))).mkdir()
    assert adopt(directory) == []
    assert (tmp_path / "target").read_bytes() == b"secret"


@ROOT_ONLY
def test_foreign_segments_are_left_alone(tmp_path):
    """What belongs to another user is neither read nor written."""
    path = three_records(tmp_path)
    os.chown(path, 12345, -1)
    assert adopt(tmp_path) == []


def test_the_directory_must_be_ours(tmp_path):
    """A directory that is a link is not used."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(PermissionError, match="not a directory of this user"):
        make_private_directory(tmp_path / "link")


def test_several_segments_and_producers(make, tmp_path, monkeypatch):
    """Each producer's segments are adopted together and given out in order."""
    monkeypatch.setattr(spool_queue, "SEGMENT_BYTES", 100)
    for producer in (PRODUCER, OTHER):
        queue = make(producer=producer)
        for i in range(10):
            queue.add(b"%s %d" % (producer[:1].encode(), i), now=0.0)
        queue.close(-1)
    backlogs = adopt(tmp_path / "spool", 30)
    assert sorted(backlog.producer.id for backlog in backlogs) == [PRODUCER, OTHER]
    for backlog in backlogs:
        batches = []
        while (batch := backlog.take()) is not None:
            batches.append(batch)
        assert read_back(batches) == [b"%s %d" % (backlog.producer.id[:1].encode(), i) for i in range(10)]
        backlog.close()


def test_a_missing_segment_is_marked(make, tmp_path, monkeypatch):
    """If a segment in the middle is gone, its seqs are marked and the rest is given out."""
    monkeypatch.setattr(spool_queue, "SEGMENT_BYTES", 200)
    queue = make()
    for i in range(9):
        queue.add(b"%050d" % i, now=0.0)
    queue.close(-1)
    paths = sorted((tmp_path / "spool").iterdir())
    first, second = (SegmentName.parse(path.name).first_seq for path in paths[1:3])
    paths[1].unlink()
    (backlog,) = adopt(tmp_path / "spool")
    batches = []
    while (batch := backlog.take()) is not None:
        batches.append(batch)
    backlog.close()
    found = read_back(batches)
    assert [i for i, event in enumerate(found) if event is None] == list(range(first, second))
    assert DropMarker(first, second - first, DAMAGED) in batches[1].dropped


# --- bounds ---


def test_a_full_spool(make):
    """What finds no room is marked where it would stand."""
    queue = make(max_spool_bytes=400)
    queue.add(b"x" * 100, now=0.0)
    queue.add(b"y" * 100, now=0.0)
    assert not queue.has_room(200)
    assert queue.drop_reason == "spool_full"
    queue.add_dropped("spool_full", now=0.0)
    queue.add_dropped("spool_full", now=0.0)
    queue.add_dropped("rejected", now=0.0)
    assert read_back(drain(queue)) == [b"x" * 100, b"y" * 100, None, None, None]
    queue.add(b"z", now=0.0)
    assert queue.take() == Batch(5, (b"z",))


def test_dropped_seqs_survive(make, tmp_path):
    """Markers are on disk as soon as an event follows them."""
    queue = make()
    queue.add(b"a", now=0.0)
    queue.add_dropped("spool_full", now=0.0)
    queue.add(b"b", now=0.0)
    queue.abandon()
    (backlog,) = adopt(tmp_path / "spool")
    assert backlog.take() == Batch(0, (b"a", b"b"), (DropMarker(1, 1, "spool_full"),))
    backlog.close()


def test_drop_oldest_goes_by_segments(make, monkeypatch):
    """The oldest segments give way; their seqs are told as dropped."""
    monkeypatch.setattr(spool_queue, "SEGMENT_BYTES", 150)
    queue = make(max_spool_bytes=1200)
    for i in range(10):
        if not queue.has_room(100):
            assert queue.drop_oldest(100, "spool_full") > 0
        queue.add(b"%0100d" % i, now=0.0)
    found = read_back(drain(queue))
    assert len(found) == 10
    assert found[0] is None
    assert found[-1] == b"%0100d" % 9
    assert queue.held == sum(event is not None for event in found)


# --- disks that fail ---


class Disk:
    """`os.write` that takes only so many bytes more, on a disk that sets no room aside."""

    def __init__(self, monkeypatch, room):
        self.room = room
        self.error = errno.ENOSPC
        real = os.write

        def write(descriptor, data):
            if self.room <= 0:
                raise OSError(self.error, os.strerror(self.error))
            part = bytes(data[: self.room])
            self.room -= len(part)
            return real(descriptor, part)

        def fallocate(descriptor, offset, length):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(segments.os, "write", write)
        monkeypatch.setattr(segments.os, "posix_fallocate", fallocate, raising=False)


@pytest.mark.parametrize("room", [0, 1, 50, 150, 170, 200, 400])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails(make, monkeypatch, reports, tmp_path, room, error):  # noqa: PLR0917 - fixtures
    """Events go to memory instead, in order; nothing is lost, torn or doubled; it is said; and the disk is tried again."""
    disk = Disk(monkeypatch, room)
    disk.error = error
    queue = make()
    for i in range(10):
        queue.add(b"%030d" % i, now=0.0)
    assert queue.is_in_memory
    assert reports
    assert "kept in memory" in reports[0][1]
    disk.room = 10**9
    queue.add(b"%030d" % 10, now=1.0)
    assert queue.is_in_memory, "the disk is left alone for a while"
    queue.add(b"%030d" % 11, now=100.0)
    assert not queue.is_in_memory
    queue.abandon()
    (backlog,) = adopt(tmp_path / "spool")
    assert read_back(list(iter(backlog.take, None))) == [b"%030d" % i for i in range(12)]
    backlog.close()


def test_memory_is_bounded_too(make, monkeypatch):
    """While the disk fails, the bound of the memory queue holds, with its markers."""
    Disk(monkeypatch, 0)
    queue = make(max_queue_bytes=300)
    queue.add(b"x" * 100, now=0.0)
    assert not queue.has_room(200)
    assert queue.drop_reason == "queue_full"
    queue.add_dropped("queue_full", now=0.0)
    assert queue.drop_oldest(200, "queue_full") == 1
    assert read_back(drain(queue)) == [None, None]
    assert "memory" in repr(queue)


def test_a_disk_that_fails_again(make, monkeypatch):
    """If the disk takes a part of what memory holds, the rest stays there, in order."""
    disk = Disk(monkeypatch, 0)
    queue = make()
    for i in range(5):
        queue.add(b"%030d" % i, now=0.0)
    queue.add_dropped("queue_full", now=0.0)
    disk.room = 250
    queue.add(b"%030d" % 6, now=100.0)
    assert queue.is_in_memory
    assert read_back(drain(queue)) == [*(b"%030d" % i for i in range(5)), None, b"%030d" % 6]


def test_a_gap_that_cannot_be_written(make, monkeypatch):
    """Markers survive a disk that fails when they are to be written."""
    disk = Disk(monkeypatch, 10**9)
    queue = make()
    queue.add(b"a", now=0.0)
    queue.add_dropped("spool_full", now=0.0)
    disk.room = 0
    queue.add_dropped("rejected", now=0.0)
    queue.add(b"b", now=0.0)
    assert read_back(drain(queue)) == [b"a", None, None, b"b"]


def test_sync(make):
    """A sync reaches every segment that was written since the last, and no other; and the name of a new one."""
    directories = [True] * (1 + spool_queue.MADE_PARENTS)
    synced = []

    def sync(queue):
        for descriptor in queue.unsynced():
            synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
            sync_and_close(descriptor)

    queue = make()
    sync(queue)
    queue.add(b"x", now=0.0)
    sync(queue)
    assert synced == [False, *directories]
    sync(queue)
    queue.add(b"y", now=0.0)
    sync(queue)
    assert synced == [False, *directories, False]


# --- room set aside ---


@pytest.fixture
def mapped(tmp_path):
    if not segments.can_map(tmp_path):
        pytest.skip("the file system of the temporary directory is not one where room is set aside")


@pytest.mark.usefixtures("mapped")
def test_room_grows_with_what_is_written(make, tmp_path):
    """A segment begins small, doubles, and is cut to its size at the end."""
    queue = make(max_batch_bytes=10**9)
    queue.add(b"x", now=0.0)
    (path,) = (tmp_path / "spool").iterdir()
    assert path.stat().st_size == segments.FIRST_ROOM
    events = [b"x"] + [b"%01000d" % i for i in range(3000)] + [b"y" * 5_000_000]
    for event in events[1:]:
        queue.add(event, now=0.0)
    assert queue.held_bytes < path.stat().st_size <= queue.held_bytes * 2 + segments.FIRST_ROOM
    assert read_back(drain(queue)) == events
    used = queue.held_bytes
    queue.close(-1)
    assert path.stat().st_size == used
    (backlog,) = adopt(tmp_path / "spool")
    assert read_back(list(iter(backlog.take, None))) == events
    backlog.close()


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("length", [0, 100, 70_000, 3_000_000])
def test_room_that_was_never_used(make, tmp_path, length):
    """What a killed process leaves ends in zeros, which are no damage."""
    queue = make(max_batch_bytes=10**9)
    events = [b"a" * length, b"b"]
    for event in events:
        queue.add(event, now=0.0)
    queue.abandon()  # as a kill does
    (path,) = (tmp_path / "spool").iterdir()
    assert path.read_bytes().endswith(bytes(100))
    (backlog,) = adopt(tmp_path / "spool")
    batches = list(iter(backlog.take, None))
    assert read_back(batches) == events
    assert not any(batch.dropped for batch in batches)
    backlog.close()


@pytest.mark.usefixtures("mapped")
def test_room_that_cannot_grow(make, tmp_path, monkeypatch):
    """Where no more room can be set aside, what follows is written, in the same file."""
    queue = make(max_batch_bytes=10**9)
    events = [b"%01000d" % i for i in range(200)]
    for event in events[:50]:
        queue.add(event, now=0.0)

    def fallocate(descriptor, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(segments.os, "posix_fallocate", fallocate)
    for event in events[50:]:
        queue.add(event, now=0.0)
    (path,) = (tmp_path / "spool").iterdir()
    assert path.stat().st_size == queue.held_bytes
    assert read_back(drain(queue)) == events
    assert not queue.is_in_memory


@pytest.mark.usefixtures("mapped")
def test_a_fork_leaves_the_file_as_it_is(make, tmp_path):
    """A child that lets go of what it inherited must not cut the file that its parent goes on writing."""
    queue = make()
    queue.add(b"a", now=0.0)
    child = os.fork()
    if child == 0:
        queue.abandon()
        os._exit(0)
    os.waitpid(child, 0)
    queue.add(b"b", now=0.0)
    assert read_back(drain(queue)) == [b"a", b"b"]
    (path,) = (tmp_path / "spool").iterdir()
    assert path.stat().st_size == segments.FIRST_ROOM


def test_where_room_is_not_set_aside(tmp_path, monkeypatch):
    """Unknown file systems, and directories that are not there, are written to and not mapped."""
    assert not segments.can_map(tmp_path / "nowhere")
    monkeypatch.setattr(segments, "_file_system", lambda device: "nfs4")
    assert not segments.can_map(tmp_path)
    monkeypatch.undo()
    assert segments._file_system(0xFFFF_FFFF) == ""
    monkeypatch.delattr(segments.os, "posix_fallocate", raising=False)
    assert not segments.can_map(tmp_path)


def _reads_meanwhile(queue, during):
    """Let another thread do something while the first segment is read."""
    read = queue._segments[0].writer.read

    def reading(offset, length):
        other = threading.Thread(target=during)
        queue._segments[0].reader._read = read
        other.start()
        other.join()
        return read(offset, length)

    queue._segments[0].reader._read = reading


def test_adding_goes_on_while_a_batch_is_read(make, monkeypatch):
    """The reader of a batch holds no lock, and what is added meanwhile comes with the next."""
    monkeypatch.setattr(spool_queue, "SEGMENT_BYTES", 1)  # a segment for each
    lock = threading.RLock()
    queue = make(lock=lock)
    queue.add(b"a", now=0.0)
    queue.add(b"b", now=0.0)

    def add():
        with lock:
            queue.add(b"c", now=0.0)

    _reads_meanwhile(queue, add)
    assert read_back([queue.take()]) == [b"a"]
    assert read_back(drain(queue), 1) == [b"b", b"c"]


def test_what_is_dropped_while_it_is_read(make, monkeypatch):
    """The oldest make room also while they are being read; a marker goes in their place, once."""
    monkeypatch.setattr(spool_queue, "SEGMENT_BYTES", 1)
    lock = threading.RLock()
    queue = make(lock=lock)
    for event in (b"a", b"b", b"c", b"d"):
        queue.add(event, now=0.0)
    assert queue._lost == deque()
    with lock:
        monkeypatch.setattr(queue, "_max_spool_bytes", queue.held_bytes - 1)
        assert queue.drop_oldest(0, "spool_full") == 1

    def drop():
        with lock:
            monkeypatch.setattr(queue, "_max_spool_bytes", queue.held_bytes - 1)
            assert queue.drop_oldest(0, "spool_full") == 1

    _reads_meanwhile(queue, drop)
    batches = drain(queue)
    queue.clean()
    assert read_back(batches) == [None, None, b"c", b"d"]
    assert [marker.reason for batch in batches for marker in batch.dropped] == ["spool_full"] * 2
    assert queue.held == 2


def test_a_killed_process_leaves_all_that_returned(tmp_path):
    """Whatever a process did last: each event whose call returned is there after SIGKILL."""
    code = (
        "import sys, pathlib\n"
        "from runlog.delivery.spool_queue import SpoolQueue\n"
        "from runlog.delivery.producer import Producer\n"
        "queue = SpoolQueue(pathlib.Path(sys.argv[1]), Producer(), max_batch_bytes=10**6, batch_interval=1,\n"
        "                   max_spool_bytes=10**9, max_queue_bytes=10**6, report=print)\n"
        "for i in range(10**9):\n"
        "    queue.add(b'%d' % i, now=0.0)\n"
        "    if i % 100 == 0: print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    last = -1
    for line in child.stdout:
        last = int(line)
        if last >= 5000:
            break
    child.kill()
    child.communicate()
    (backlog,) = adopt(tmp_path)
    found = read_back(list(iter(backlog.take, None)))
    backlog.close()
    assert len(found) > last
    assert found == [b"%d" % i for i in range(len(found))]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 60)),
        st.tuples(st.just("drop_new"), st.sampled_from(["a", "b"])),
        st.tuples(st.just("drop_oldest"), st.integers(1, 200)),
        st.tuples(st.just("take"), st.none()),
        st.tuples(st.just("ack"), st.none()),
        st.tuples(st.just("disk"), st.integers(0, 300)),
        st.tuples(st.just("later"), st.none()),
        st.tuples(st.just("crash"), st.none()),
    ),
    max_size=50,
)


@settings(deadline=None)
@given(steps)
def test_against_a_model(tmp_path_factory, steps):
    """
    Whatever happens in whatever order, the server ends up with each seq once, in order.

    A crash loses only what was in memory because the disk had failed; what an
    adopter resends, the server has already and drops.
    """
    directory = tmp_path_factory.mktemp("spool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_queue, "SEGMENT_BYTES", 120)
        disk = Disk(patch, 10**9)
        now = 0.0
        accepted: list[bytes | None] = []
        server: list[bytes | None] = []
        flying: list[Batch] = []

        def new_queue():
            return SpoolQueue(
                directory,
                Producer(PRODUCER),
                max_batch_bytes=100,
                batch_interval=1,
                max_spool_bytes=600,
                max_queue_bytes=300,
                report=lambda kind, text: None,
            )

        def receive(batch):
            assert batch.first_seq <= len(server), "a gap"
            server.extend(read_back([batch], batch.first_seq)[len(server) - batch.first_seq :])

        queue = new_queue()
        for step, argument in steps:
            if step == "add":
                event = b"%d:" % len(accepted) + b"x" * argument
                queue.add(event, now=now)
                accepted.append(event)
            elif step == "drop_new":
                queue.add_dropped(argument, now=now)
                accepted.append(None)
            elif step == "drop_oldest":
                queue.drop_oldest(argument, "spool_full")
            elif step == "take" and (batch := queue.take()) is not None:
                flying.append(batch)
                receive(batch)
            elif step == "ack" and flying:
                batch = flying.pop(0)
                queue.settle(len(batch.events), batch.held_bytes)
                queue.acknowledged(batch.last_seq)
            elif step == "disk":
                disk.room = argument if argument < 250 else 10**9
            elif step == "later":
                now += 100.0
            elif step == "crash":
                break
        else:
            for batch in iter(queue.take, None):
                receive(batch)
            assert len(server) == len(accepted)
        in_memory = queue.is_in_memory
        queue.abandon()
        for backlog in adopt(directory, 100):
            for batch in iter(backlog.take, None):
                if batch.last_seq >= len(server):
                    if batch.first_seq > len(server):  # what the server never had, and is not on disk either
                        server.extend([None] * (batch.first_seq - len(server)))
                    receive(batch)
                backlog.acknowledged(batch.last_seq)
            backlog.close()
        assert all(mine is None or mine == theirs for mine, theirs in zip(server, accepted, strict=False))
        assert len(server) <= len(accepted)
        del in_memory


def test_markers_that_cannot_be_read():
    """A marker whose text is damaged in a way that its checksum hides still marks one seq."""
    assert segment_reader._read_marker(b"rubbish") == (1, DAMAGED)
    assert segment_reader._read_marker(json.dumps({"count": 3, "reason": "x"}).encode()) == (3, "x")
