"""What each example shares is found again: with the demo model, as a reader runs them."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("demo_at_hand")


def lines_of(capsys, name):
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    return [line for line in capsys.readouterr().out.splitlines() if line]


@pytest.mark.parametrize(
    ("name", "hit_rate"),
    [
        ("shared_system_prompt", 71),  # 5 of 6 find the 128 tokens that are whole blocks
        ("few_shot_batch", 74),
        ("parallel_samples", 83),  # 5 of 6 replies
    ],
)
def test_what_is_shared_is_found(capsys, name, hit_rate):
    """The prompts are what they are, so the rates are exact."""
    assert lines_of(capsys, name)[-1] == f"{hit_rate}% of the prompts came from the cache"


def test_a_document_is_found_in_every_tier(capsys):
    *found, rate = lines_of(capsys, "one_document_many_questions")
    assert all(f"'{tier}'" in "".join(found) for tier in ("device", "host", "disk"))
    assert rate == "69% of the prompts came from the cache"


def test_a_chat_goes_on_from_disk(capsys):
    turns = lines_of(capsys, "chat_that_pauses")
    assert re.match(r"turn 1: 0% of \d+ {} ", turns[0])
    assert re.match(r"turn 2: (6\d|7\d)% of \d+ {'device': \d+} ", turns[1])
    assert re.match(r"turn 3: (6\d|7\d|8\d)% of \d+ {'disk': \d+} ", turns[2])


def test_the_tree_is_drawn_from_live_data(capsys):
    *tree, rate = lines_of(capsys, "prefix_tree")
    assert rate == "44% of the prompts came from the cache"
    assert tree == [
        "├─ system A: 80 tokens, {'device': 80}",
        "│  ├─ catalogue of clocks: 128 tokens, {'device': 208}",
        "│  └─ catalogue of maps: 112 tokens, {'device': 80, 'host': 112}",
        "└─ system B: 64 tokens, {'host': 64}",
        "   └─ examples: 64 tokens, {'host': 128}",
    ]


def test_a_named_cache_is_there_after_a_restart(capsys):
    made, found, cached = lines_of(capsys, "named_cache")
    assert re.match(r"handbook: \d+ tokens in \d+ blocks are on disk", made)
    assert re.match(r"after a restart: handbook, \d+ blocks on disk, 0 lost", found)
    num_cached, num_tokens = map(int, re.findall(r"\d+", cached))
    assert num_cached > 0.9 * num_tokens


def test_why_it_missed_says_so(capsys):
    found, *told = lines_of(capsys, "why_it_missed")
    assert re.match(r"16 of \d+ tokens were cached", found)
    assert any("differs" in line for line in told)
    assert "[7" in "".join(told), "the second that differs"
    assert "timestamp: " in "".join(told)
