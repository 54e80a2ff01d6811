"""`kvtide bench serve` as a user runs it."""

import json

from tests.cli.test_bench_ttft import kvtide, tiny_dir

__all__ = ["tiny_dir"]


def test_what_is_shared_is_saved_with_tier_traffic_and_without(tiny_dir, tmp_path):
    rows_file = tmp_path / "rows.json"
    sizes = [
        "--prompt-tokens",
        "320",
        "--new-tokens",
        "4",
        "--clients",
        "2",
        "--requests",
        "12",
        "--sharing",
        "0,90",
    ]
    done = kvtide("bench", "serve", "--model", tiny_dir, *sizes, "--json", str(rows_file))
    assert done.returncode == 0, done.stderr
    measured = json.loads(rows_file.read_text())
    rows = {(row["sharing"], row["tiers"]): row for row in measured["rows"]}
    assert set(rows) == {(0, False), (90, False), (0, True), (90, True)}
    for (sharing, tiers), row in rows.items():
        assert row["prompt_tokens_saved"] == (288 / 320 if sharing else 0)
        assert row["requests_per_s"] > 0
        assert 0 < row["ttft_p50_s"] <= row["ttft_p99_s"]
        assert 0 < row["between_tokens_p50_s"] <= row["between_tokens_p99_s"]
        assert (row["disk_blocks"] > 0) is (tiers and not sharing)
    assert rows[0, True]["evicted_blocks"] > 0
    assert measured["environment"]["versions"]["torch"]


def test_sharing_that_is_no_percent_is_refused():
    done = kvtide("bench", "serve", "--sharing", "50,100")
    assert done.returncode == 2
    assert "percents from 0 to 99" in done.stderr
