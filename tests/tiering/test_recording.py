"""Recordings: ids that say which prompts begin alike and nothing else, rows in the order of arrival, and what bounds them."""

import io
import json
import threading

import numpy as np
import pytest

from tiering.recording import Ids, Recording, Served, earlier
from tiering.trace import read_trace

KEY = b"k" * 32
BLOCK = 4


def served(tokens, arrived_s=0.0, **facts) -> Served:
    array = np.array(tokens, dtype=np.int32)
    return Served(
        arrived_s=arrived_s,
        tokens=array,
        prompt_tokens=facts.pop("prompt", len(array)),
        output_tokens=1,
        **facts,
    )


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_ids_are_equal_where_whole_prefixes_are():
    ids = Ids(KEY, BLOCK)
    one = ids.blocks(np.arange(12, dtype=np.int32))
    other = ids.blocks(np.array([*range(8), 9, 9, 9, 9, 9], dtype=np.int32))
    assert len(one) == len(other) == 3
    assert one[:2] == other[:2]
    assert one[2] != other[2]
    later = ids.blocks(np.array([7, *range(1, 12)], dtype=np.int32))
    assert not set(one) & set(later), "what differs at the beginning differs all the way"
    assert all(0 <= each < 2**63 for each in one)
    assert ids.blocks(np.zeros(3, dtype=np.int32)) == []


def test_another_key_names_everything_otherwise():
    tokens = np.arange(12, dtype=np.int32)
    mine, others = Ids(KEY, BLOCK), Ids(b"x" * 32, BLOCK)
    assert not set(mine.blocks(tokens)) & set(others.blocks(tokens))
    assert mine.tenant("bob") != others.tenant("bob")
    assert "bob" not in mine.tenant("bob")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_what_ended_is_read_in_the_order_of_arrival(tmp_path, name):
    """The first to come ends last: what ended before it waits for it."""
    path = tmp_path / name
    with Recording(path, block_tokens=BLOCK, key=KEY, clock=Clock()) as recording:
        recording.offer(served(range(8), 2.0, found={"device": 1, "host": 0, "disk": 0}, ttft_s=0.5), 1.0)
        recording.offer(served(range(13), 3.0, prompt=9), 1.0)
        recording.offer(served(range(5), 1.0))
    first, second, third = read_trace(path)
    assert [each.at_s for each in (first, second, third)] == [0.0, 1.0, 2.0]
    assert (first.blocks, second.blocks, third.blocks) == ([0], [0, 1], [0, 1])
    assert (second.found, second.ttft_s) == ({"device": 1, "host": 0, "disk": 0}, 0.5)
    assert third.reply_blocks == [2]
    assert recording.stats()["ended"] == "stopped"
    recording.check()


def test_nothing_of_a_prompt_or_a_tenant_is_in_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    with Recording(path, block_tokens=BLOCK) as recording:
        recording.offer(served([77777] * 8, recording._began_s, tenant="somebody", kind="chat", end="stop"))
    text = path.read_text()
    assert "77777" not in text
    assert "somebody" not in text
    assert set(json.loads(text.splitlines()[1])) == {
        *("at_s", "blocks", "input_tokens", "output_tokens", "tenant", "kind", "end")
    }


def test_what_comes_too_fast_is_dropped_and_counted(tmp_path, monkeypatch):
    """The thread hangs in what it writes to: the offers do not wait for it."""
    monkeypatch.setattr("tiering.recording._MOST_WAITING", 2)
    writing, go_on = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        kept = b""

        def write(self, data):
            if b"at_s" in data and not go_on.is_set():
                writing.set()
                go_on.wait(10)
            return super().write(data)

        def close(self):
            self.kept = self.getvalue()
            super().close()

    slow = Slow()
    recording = Recording(slow, block_tokens=BLOCK, key=KEY, clock=Clock())
    recording.offer(served(range(4)))
    assert writing.wait(10)
    for _ in range(5):
        recording.offer(served(range(4)))
        recording.check()
    go_on.set()
    recording.close()
    rows = [json.loads(line) for line in slow.kept.splitlines()]
    assert [row.get("dropped", 0) for row in rows[1:]] == [0, 3, 0, 3]
    assert rows[-1] == {"ended": "stopped", "requests": 3, "dropped": 3}


def test_it_ends_by_itself(tmp_path):
    clock = Clock()
    recording = Recording(tmp_path / "a.jsonl", block_tokens=BLOCK, max_s=5.0, clock=clock)
    recording.offer(served(range(4)))
    clock.now_s = 6.0
    recording.offer(served(range(4), 5.5))  # wakes it
    assert recording.wait(10)
    assert lines(tmp_path / "a.jsonl")[-1]["ended"] == "seconds"
    recording.offer(served(range(4), 7.0))
    recording.close()
    small = Recording(tmp_path / "b.jsonl", block_tokens=BLOCK, max_bytes=4096, clock=clock)
    for _ in range(100):
        small.offer(served(range(4), 6.0))
    assert small.wait(10)
    assert lines(tmp_path / "b.jsonl")[-1]["ended"] == "bytes"


def test_a_file_that_is_full_is_renamed(tmp_path):
    path = tmp_path / "a.jsonl"
    with Recording(
        path, block_tokens=BLOCK, key=KEY, max_bytes=4096, rotate=True, clock=Clock()
    ) as recording:
        for at in range(150):
            recording.offer(served(range(4), float(at)))
    before, now = list(read_trace(earlier(path))), list(read_trace(path))
    assert before
    assert now
    assert lines(path)[0] == lines(earlier(path))[0]
    assert earlier(path).stat().st_size < 4096 + 200
    assert recording.stats()["requests"] == 150


def test_what_cannot_be_written_ends_the_recording_and_nothing_else(caplog):
    class Full(io.BytesIO):
        def write(self, data):
            if b"at_s" in data:
                raise OSError(28, "No space left on device")
            return super().write(data)

    with Recording(Full(), block_tokens=BLOCK, clock=Clock()) as recording:
        recording.offer(served(range(4)))
        assert recording.wait(10)
        recording.offer(served(range(4)))
    assert recording.stats()["ended"] == "failed"
    recording.check()
    assert "No space left on device" in caplog.text


def test_what_was_there_before_is_not_recorded(tmp_path):
    clock = Clock()
    clock.now_s = 10.0
    with Recording(tmp_path / "a.jsonl", block_tokens=BLOCK, clock=clock) as recording:
        recording.offer(served(range(4), 9.0))
    assert lines(tmp_path / "a.jsonl")[-1]["requests"] == 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"key": b"short"}, "32 bytes, not 5"),
        ({"max_bytes": 10}, "4096 bytes at least"),
        ({"rotate": True}, "max_bytes must say when"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, settings, why):
    with pytest.raises(ValueError, match=why):
        Recording(tmp_path / "a.jsonl", block_tokens=BLOCK, **settings)
