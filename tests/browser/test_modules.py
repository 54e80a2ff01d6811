"""What the page computes: numbers as people read them, differences, and the heights of the tree."""

import json

import pytest

from kvstore import MissReason


@pytest.fixture(scope="module")
def call(chromium, generated):
    """Calls a function of one of the page's modules in the browser."""
    tab = chromium.tab()
    tab.open(generated.url)

    def call_one(module: str, name: str, *args: object):
        return tab.js(f"import('/page/{module}.js').then((module) => module.{name}(...{json.dumps(args)}))")

    return call_one


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bytes", 0, "0 B"),
        ("bytes", 1023, "1,023 B"),
        ("bytes", 1023.9 * 1024, "1.00 MiB"),
        ("bytes", 64 * 1024**3, "64.0 GiB"),
        ("bytes", None, "–"),  # noqa: RUF001 - a dash, as for every absent value
        ("rate", 1536, "1.50 KiB/s"),
        ("short", 9999, "9,999"),
        ("short", 126_482, "126 k"),
        ("short", 9_402_112, "9.40 M"),
        ("percent", 0.6821, "68.2 %"),
        ("seconds", 0, "0 ms"),
        ("seconds", 0.0403, "40.3 ms"),
        ("seconds", 9.04, "9.0 s"),
        ("seconds", 90, "2 min"),
        ("seconds", 5130, "1 h 26 min"),
        ("seconds", 7200, "2 h"),
        ("seconds", 260_000, "3 days"),
        ("ago", None, "never"),
        ("parseBytes", "64 GiB", 64 * 1024**3),
        ("parseBytes", "1.5m", 1.5 * 1024**2),
        ("parseBytes", "2 GB", 2_000_000_000),
        ("parseBytes", "a lot", None),
        ("exactBytes", 32400 * 1024, "32400 KiB"),
        ("exactBytes", 1001, "1001"),
    ],
)
def test_numbers_are_written_as_people_read_them(call, name, value, expected):
    found = call("format", name, value)
    assert (found.replace("\xa0", " ") if isinstance(found, str) else found) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (["a", "b", "c"], ["a", "x", "c"], ([0, 1, 0], [0, 1, 0])),
        (["a", "b"], ["a", "b"], ([0, 0], [0, 0])),
        (["a", "b", "c", "d"], ["c", "a", "b", "d"], ([0, 0, 1, 0], [1, 0, 0, 0])),
        ([], ["a"], ([], [1])),
        (["a"] * 900, ["b"] * 900, ([1] * 900, [1] * 900)),
    ],
)
def test_what_is_in_both_is_not_marked(call, one, other, expected):
    assert call("difference", "changed", one, other) == [[bool(flag) for flag in side] for side in expected]


def run(blocks: int, below: int = 0) -> dict[str, object]:
    return {"key": f"{blocks}-{below}", "blocks": blocks, "blocks_below": below}


@pytest.mark.parametrize(
    ("rows", "total", "blocks", "tall"),
    [
        ([run(50, 900), run(3), run(2), run(1)], 16_000, 60_000, 400),
        ([run(1)] * 40, 40, 40, 400),
        ([run(1)] * 40, 9000, 9000, 30),
        ([run(1)], 1, 1, 12),
        ([], 700, 5000, 18),
        ([run(5), run(1)], 5, None, 300),
    ],
)
def test_a_height_is_divided_without_a_pixel_left(call, rows, total, blocks, tall):
    parts = call("icicle", "share", rows, total, blocks, tall)
    assert sum(part["height"] for part in parts) == pytest.approx(tall)
    assert all(part["height"] >= min(18, tall) - 1e-6 for part in parts), "room for a line"
    assert sum(part.get("rest") or 1 for part in parts) == total, "each run is in one of them"
    heights = [part["height"] for part in parts if part.get("run")]
    assert heights == sorted(heights, reverse=True)


def test_points_are_merged_by_the_tokens_that_were_asked_for(call):
    points = [
        [5, 0.5, 0.0, 0.0, 100],
        [10, None, None, None, 0],
        [15, 0.0, 0.2, 0.0, 300],
        [20, 0.0, 0.0, 0.0, 100],
    ]
    assert call("chart", "merged", points, 2) == [[10, 0.5, 0, 0, 100], [20, 0, pytest.approx(0.15), 0, 400]]


def test_every_reason_has_a_name_and_a_sentence(call):
    """Also those that the last version did not know: the name of one is no sentence."""
    assert [reason for reason in MissReason if not call("words", "reasonText", reason)] == []
