"""What is kept of loading and computing: it is found again by its facts only, and whatever else lies there does no harm."""

import json
import os

import pytest

from tiering.costs import Costs
from tiering.kept_costs import _MOST_FILES, BYTES_FACT, CostsFile, read_costs

FACTS = {"model": "a", "threads": "2", BYTES_FACT: "4"}
DAY_S = 86_400.0


def some_costs(byte_s=1e-9, num=20):
    costs = Costs()
    for _ in range(num):
        costs.prefilled(0, 1000, 1.0)
        costs.loaded("disk", 1 << 20, byte_s * (1 << 20))
    return costs


def disk_byte_s(costs):
    return costs.curves.loads["disk"].seconds(1 << 20) / (1 << 20)


def test_what_was_kept_is_found_by_the_same_facts(tmp_path, caplog):
    costs = some_costs()
    CostsFile(tmp_path / "costs", FACTS).save(costs)
    found = CostsFile(tmp_path / "costs", dict(reversed(FACTS.items()))).load()
    found.check()
    assert found.as_json() == costs.as_json()
    assert CostsFile(tmp_path / "costs", {**FACTS, "threads": "4"}).load().as_json() == Costs().as_json()
    assert not caplog.records, "that there is nothing is no news"
    kept = CostsFile(tmp_path / "costs", FACTS).path
    assert kept.stat().st_mode & 0o77 == 0
    again, token_bytes = read_costs(json.loads(kept.read_text()))
    assert (again.as_json(), token_bytes) == (costs.as_json(), 4)
    again, token_bytes = read_costs(costs.as_json())
    assert (again.as_json(), token_bytes) == (costs.as_json(), None)


def _changed(**changes):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_text(path.read_text()[:-20]),
        lambda path: path.write_bytes(b"\xff\x00"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text("[]"),
        lambda path: (path.unlink(), path.mkdir()),
        _changed(version=2),
        _changed(facts={"model": "b", "threads": "2"}),
        _changed(saved_s="yesterday"),
        _changed(costs={"version": 1, "prefill": [[0, 0, 1.0]], "loads": {}}),
        _changed(costs=None),
    ],
)
def test_what_is_damaged_or_foreign_is_not_used_and_said_once(tmp_path, caplog, harm):
    file = CostsFile(tmp_path / "costs", FACTS)
    file.save(some_costs())
    harm(file.path)
    assert file.load().as_json() == Costs().as_json()
    [record] = caplog.records
    assert str(file.path) in record.getMessage()


def test_the_older_it_is_the_sooner_new_traffic_outvotes_it(tmp_path):
    said = []
    for age_s in (0.0, 2 * DAY_S, 400 * DAY_S, -DAY_S):
        CostsFile(tmp_path / "costs", FACTS, now_s=lambda: 1e9).save(some_costs())
        found = CostsFile(tmp_path / "costs", FACTS, now_s=lambda age_s=age_s: 1e9 + age_s).load()
        found.check()
        assert disk_byte_s(found) == pytest.approx(1e-9, rel=0.01), "alone it is believed at any age"
        for _ in range(5):
            found.loaded("disk", 1 << 20, 4e-9 * (1 << 20))
        found.check()
        said.append(disk_byte_s(found))
    fresh, older, oldest, to_come = said
    assert [fresh, to_come] == [pytest.approx(1e-9, rel=0.05)] * 2, "five of sixteen say otherwise"
    assert [older, oldest] == [pytest.approx(4e-9, rel=0.05)] * 2


def test_a_disk_that_takes_nothing_costs_one_line(tmp_path, caplog):
    (tmp_path / "costs").write_text("")
    CostsFile(tmp_path / "costs", FACTS).save(some_costs())
    [record] = caplog.records
    assert "is not kept" in record.getMessage()


def test_of_many_configurations_the_last_ones_are_left(tmp_path):
    files = [CostsFile(tmp_path / "costs", {"number": str(n)}) for n in range(_MOST_FILES + 3)]
    for n, file in enumerate(files):
        file.save(Costs())
        os.utime(file.path, ns=(n, n))
    files[0].save(Costs())
    left = {file.path for file in files if file.path.exists()}
    assert left == {files[0].path, *(file.path for file in files[-_MOST_FILES:])}
