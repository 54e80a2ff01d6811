"""Four formats of traces: what is read, what is written, and what is said of a line that is wrong."""

import json
import re
from random import Random

import pytest
import zstandard

from tiering.keeping import Hints
from tiering.trace import TraceError, TraceRequest, TraceWriter, read_trace

MOONCAKE = """
{"timestamp": 500, "input_length": 1030, "output_length": 7, "hash_ids": [40, 41, 42]}

{"timestamp": 2500, "input_length": 600, "output_length": 1, "hash_ids": [40, 50], "session": "anything"}
"""
BAILIAN = """
{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 1030, "output_length": 7, "type": "text", "turn": 1,
 "hash_ids": [40, 41, 42]}
{"chat_id": 2, "parent_chat_id": 1, "timestamp": 2.5, "input_length": 600, "output_length": 1, "type": "text", "turn": 2,
 "hash_ids": [40, 50]}
""".replace(",\n ", ", ")
LMCACHE = """
{"timestamp": 1711929600.5, "request_id": "a", "chunk_size": 256, "seq_len": 1030, "chunk_hashes": ["0xa", "0xb", "0xc"]}
{"timestamp": 1711929602.5, "request_id": "b", "chunk_size": 256, "seq_len": 600, "chunk_hashes": ["0xa", "0xd"]}
"""
OWN = """
{"format": "kvtide-trace", "version": 1, "block_tokens": 16}
{"at_s": 0.5, "blocks": [9000000000, 1, 2], "input_tokens": 1030, "output_tokens": 7}
{"at_s": 2.5, "blocks": [9000000000, 3], "input_tokens": 600, "output_tokens": 1}
"""


@pytest.fixture
def put(tmp_path):
    def put(text, name="a.jsonl"):
        path = tmp_path / name
        data = text.lstrip("\n").encode()
        path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
        return path

    return put


@pytest.mark.parametrize(
    "text", [MOONCAKE, BAILIAN, LMCACHE, OWN], ids=["mooncake", "bailian", "lmcache", "own"]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_every_format_says_the_same(text, name, put):
    first, second = read_trace(put(text, name))
    replied = (0, 0) if text is LMCACHE else (7, 1)
    assert first == TraceRequest(0.0, [0, 1, 2], 1030, replied[0])
    assert second == TraceRequest(2.0, [0, 3], 600, replied[1])


@pytest.mark.parametrize("seed", range(60))
def test_blocks_are_numbered_in_the_order_in_which_their_ids_come(seed, put):
    """Whether ids are such numbers themselves, are so for some requests, or never."""
    random, known = Random(seed), dict[int | str, int]()
    likes_numbers = random.choice([0.5, 0.9, 1.0])
    lines, expected = [], []
    for _ in range(12):
        num = len(known)
        ids: list[int | str] = [random.randrange(num) for _ in range(random.randrange(4)) if num]
        ids += range(num, num + random.randrange(4))
        if random.random() > likes_numbers:
            ids = [random.choice([-1, num + 1, num, 0, "0", "a"]) for _ in range(random.randrange(1, 4))]
        lines.append(json.dumps({"timestamp": 0, "hash_ids": ids}))
        expected.append([known.setdefault(each, len(known)) for each in ids])
    assert [request.blocks for request in read_trace(put("\n".join(lines) + "\n"))] == expected


def test_a_trace_is_read_as_it_is_used(put):
    """A wrong line does not keep those before it from being served, nor is a long file in memory."""
    requests = read_trace(put(MOONCAKE + "nonsense\n"))
    assert [next(requests).blocks, next(requests).blocks] == [[0, 1, 2], [0, 3]]
    with pytest.raises(TraceError, match=r"a\.jsonl:4: "):
        next(requests)


def test_a_recorded_chat_is_told_from_a_prompt(put):
    rows = [f'{{"at_s": 0, "blocks": [1], "kind": "{kind}"}}' for kind in ("prompt", "chat", "warm", "new")]
    path = put("\n".join([OWN.split("\n")[1], *rows, '{"at_s": 0, "blocks": [1]}', ""]))
    assert [each.kind for each in read_trace(path)] == [0, 1, 0, 0, 0]


def test_our_own_rows_may_have_hints(tmp_path, put):
    said = Hints(goes_on=False, shared_blocks=1, breakpoints=(1, 2))
    with TraceWriter(tmp_path / "hinted.jsonl", block_tokens=16) as writer:
        writer.write(0.0, [5, 6, 7], 48, 3, said)
        writer.write(1.0, [5], 16, 3)
    first, second = read_trace(tmp_path / "hinted.jsonl")
    assert (first.hints, second.hints) == (said, Hints())
    wrong = '{"at_s": 0, "blocks": [1], "hints": {"goes_on": true, "one_shot": true}}'
    with pytest.raises(TraceError, match=r"a\.jsonl:2: .*goes on is no one-shot"):
        list(read_trace(put(OWN.strip().splitlines()[0] + "\n" + wrong + "\n")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_what_is_written_is_read(name, tmp_path):
    with TraceWriter(tmp_path / name, block_tokens=16) as writer:
        writer.write(10.0, [2**62, 5], 40, 3)
        writer.write(11.5, [2**62], 16, 0)
    assert list(read_trace(tmp_path / name)) == [
        TraceRequest(0.0, [0, 1], 40, 3),
        TraceRequest(1.5, [0], 16, 0),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_one_of_ours_may_be_cut_off_anywhere(name, put):
    """Of a process that was killed: what was written whole is read."""
    whole = put(OWN, name).read_bytes()
    first = list(read_trace(put(OWN, name)))[:1]
    counts = set()
    for end in range(OWN.lstrip("\n").index("\n") + 40, len(whole)):
        path = put("", name)
        path.write_bytes(whole[:end])
        try:
            found = list(read_trace(path))
        except TraceError as error:  # not one request was whole
            assert "there is no request in it" in str(error)  # noqa: PT017 - of some lengths only
            continue
        assert found[:1] == first
        counts.add(len(found))
    assert name.endswith(".zst") or counts == {1, 2}


def test_where_it_ended_is_no_request(put):
    assert len(list(read_trace(put(OWN + '{"ended":"stopped","requests":2,"dropped":0}\n')))) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a.jsonl: there is no request in it"),
        (
            '{"format": "kvtide-trace", "version": 1, "block_tokens": 16}\n',
            "a.jsonl: there is no request in it",
        ),
        (
            '{"format": "kvtide-trace", "version": 2, "block_tokens": 16}\n',
            "a.jsonl:1: kvtide-trace 2 is not kvtide-trace 1",
        ),
        ("[1, 2]\n", "a.jsonl:1: a request is a JSON object, not list"),
        ("\n\n{nonsense\n", "a.jsonl:1: JSON is malformed"),
        ('{"timestamp": 1}\n', "a.jsonl:1: no trace that is known"),
        ('{"hash_ids": [1]}\n', "a.jsonl:1: Object missing required field `timestamp`"),
        ('{"timestamp": 1, "hash_ids": 3}\n', "a.jsonl:1: Expected `array`, got `int` - at `$.hash_ids`"),
        (
            '{"timestamp": "now", "hash_ids": []}\n',
            "a.jsonl:1: Expected `float`, got `str` - at `$.timestamp`",
        ),
        ('{"timestamp": 1, "hash_ids": [1.5]}\n', "a.jsonl:1: Expected `int | str`, got `float`"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, why, put):
    with pytest.raises(TraceError, match=re.escape(why)):
        list(read_trace(put(text)))


def test_a_file_that_is_not_compressed_is_said_to_be_so(put, tmp_path):
    path = put(MOONCAKE)
    path.rename(tmp_path / "a.jsonl.zst")
    with pytest.raises(TraceError, match=r"a\.jsonl\.zst: zstd"):
        list(read_trace(tmp_path / "a.jsonl.zst"))
