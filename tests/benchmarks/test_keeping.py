"""What `make bench-keeping` holds against which bound, and what its hints say."""

from benchmarks.keeping import gates, hints
from benchmarks.leaf_order import Request, Trace


def _row(trace: str, blocks: int, ratio: float, points: float) -> dict[str, object]:
    return {"trace": trace, "blocks": blocks, "ratio": ratio, "points": points}


def test_each_gate_is_of_what_its_name_says():
    rows = [
        _row("mooncake_conversation_h1", 1000, 1.3, 1.0),
        _row("mooncake_conversation_h1", 3000, 1.6, 2.0),
        _row("other", 1000, 0.9, -0.6),
        _row("other", 3000, 1.0, -0.1),
    ]
    hinted = [
        {"blocks": 5000, "wrong": 0.0, "median": 0.3},
        {"blocks": 5000, "wrong": 0.2, "median": 0.19},
        {"blocks": 1000, "wrong": 0.2, "median": 0.1},
    ]
    held = {gate["name"]: (gate["value"], gate["holds"]) for gate in gates(rows, hinted)}
    assert held == {
        "conversation, 1,000 blocks, over LRU": (1.3, True),
        "conversation, 3,000 blocks, over LRU": (1.6, False),
        "worst of all: other, 1,000 blocks": (-0.6, False),
        "conversation, 5,000 blocks, with hints": (0.19, True),
    }


def test_a_hint_is_of_the_last_whole_block():
    def request(*path: int, full: int) -> Request:
        return Request(path=path, full_blocks=full, output_tokens=1)

    requests = (
        request(0, 1, full=1),  # its first block comes again
        request(0, 2, full=2),  # its second does not
        request(3, full=0),  # has none
        request(0, 4, full=1),
    )
    trace = Trace(name="four", requests=requests, parent=(-1, 0, 0, -1, 0))
    assert [hint.goes_on for hint in hints(trace, seed=0, flipped=0.0)] == [True, False, None, False]
    assert [hint.goes_on for hint in hints(trace, seed=0, flipped=1.0)] == [False, True, None, True]
