"""What is kept is found again only if it is what it says, and whole; versions that share a place find each its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore import code, shelf
from kvstore.shelf import usual_folders
from kvstore.target import Target, target
from tests.kvstore.halved import HALVE, halves


def test_what_is_kept_is_not_compiled_again(tmp_path, compiles):
    folder = tmp_path / "made" / "with its parents"
    assert halves([folder])
    assert halves([folder])
    assert compiles == ["halve"]
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: b"",
        lambda kept: kept[: len(kept) // 2],
        lambda kept: kept[:100] + bytes(512) + kept[612:],
        lambda kept: bytes(len(kept)),
        lambda kept: kept + b"\0",
        lambda kept: kept.replace(b"kvtide code 3", b"kvtide code 2"),
        lambda kept: bytes([kept[-1] ^ 1]).join([kept[:-1], b""]),
    ],
    ids=["nothing", "half", "a page of zeros", "zeros", "more", "another format", "a bit"],
)
def test_what_is_damaged_is_compiled_anew_and_mended(tmp_path, compiles, damage):
    """Whatever a loss of power, or a disk, has left: run, it would end the process."""
    assert halves([tmp_path])
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert halves([tmp_path])
    assert compiles == ["halve"] * 2
    assert file.read_bytes() == whole
    assert halves([tmp_path])
    assert compiles == ["halve"] * 2


def test_whatever_it_depends_on_has_code_of_its_own(tmp_path, compiles, monkeypatch):
    """Another processor, fewer instructions, other settings or versions; each goes on finding its own."""
    at = target()
    others = [
        ("target", lambda: at),
        ("target", lambda: Target("another", at.features, True, "")),
        ("target", lambda: Target(at.cpu, "+sse2", True, "")),
        ("target", lambda: Target(at.cpu, at.features, True, '{"NUMBA_OPT": "1"}')),
        ("made_by", lambda name: f"another {name}".encode()),
    ]
    for _ in range(2):
        for name, other in others:
            with monkeypatch.context() as patch:
                patch.setattr(code, name, other)
                assert halves([tmp_path])
    assert len(compiles) == len(others) == len(list(tmp_path.iterdir()))


def test_a_file_under_another_ones_name_is_not_run(tmp_path, compiles, monkeypatch):
    """As after a copy by hand from another machine."""
    assert halves([tmp_path])
    [file] = tmp_path.iterdir()
    monkeypatch.setattr(code, "made_by", lambda name: f"another {name}".encode())
    assert halves([tmp_path])
    [other] = set(tmp_path.iterdir()) - {file}
    other.write_bytes(file.read_bytes())
    assert halves([tmp_path])
    assert compiles == ["halve"] * 3


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_code_that_others_may_have_written_is_not_run(mode, tmp_path, compiles):
    """As in a folder that several users share: the checksum is no secret."""
    assert halves([tmp_path])
    [file] = tmp_path.iterdir()
    file.chmod(mode)
    assert halves([tmp_path])
    assert compiles == ["halve"] * 2
    assert not file.stat().st_mode & 0o022
    assert halves([tmp_path])
    assert compiles == ["halve"] * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_code_of_another_user_is_not_run(tmp_path, compiles):
    assert halves([tmp_path])
    [file] = tmp_path.iterdir()
    os.chown(file, 65534, 65534)
    assert halves([tmp_path])
    assert compiles == ["halve"] * 2


VERSION = f"""
import sys
from pathlib import Path
import numpy as np
from kvstore import code
version, folder, made = sys.argv[1:]
own, compiles = code._source, []
code._source = lambda module: own(module) + version.encode()
code._compile = lambda functions: compiles.append(functions) or [Path(made).read_bytes()]
[halve] = code.compiled([code.{HALVE}], [Path(folder)])
assert halve(np.arange(5), 2) == 5
print(len(compiles))
"""


def test_versions_that_start_in_turn_find_each_its_own(tmp_path, halving):
    """Two releases, or two checkouts, that share a place: neither compiles twice."""
    (tmp_path / "made").write_bytes(halving)
    compiles = []
    for version in ("first", "second", "first"):
        asked = [sys.executable, "-c", VERSION, version, str(tmp_path / "code"), str(tmp_path / "made")]
        compiles.append(int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout))
    assert compiles == [1, 1, 0]
    assert len(list((tmp_path / "code").iterdir())) == 2


def age(path: Path, by_s: float) -> None:
    os.utime(path, (path.stat().st_mtime - by_s,) * 2)


def test_code_that_nobody_has_used_for_long_gives_way(tmp_path, compiles, monkeypatch):
    """And what an ended process has left of its own. What was used within a day stays, however many there are."""
    monkeypatch.setattr(shelf, "_MOST_KEPT", 3)
    assert halves([tmp_path])
    [first] = tmp_path.iterdir()
    part, strange = tmp_path / f"{first.name}x81_p", tmp_path / "loops.other-12.code"
    part.write_bytes(b"half")
    strange.write_bytes(b"of another function")
    for path in (part, strange):
        age(path, 100 * 86_400.0)
    age(first, 50 * 86_400.0)
    made = {first}
    for version in range(6):
        monkeypatch.setattr(code, "_digest", lambda module, of=version: f"{of} {module}".encode())
        assert halves([tmp_path])
        [new] = set(tmp_path.iterdir()) - made - {part, strange}
        made.add(new)
        age(new, (20 - version) * 3_600.0)  # all within a day
        assert part.exists() == (version < 1)
        assert first.exists() == (version < 2)
    assert set(tmp_path.iterdir()) == made - {first} | {strange}
    oldest = min(made - {first}, key=lambda path: path.stat().st_mtime)
    age(oldest, 86_400.0)
    monkeypatch.setattr(code, "_digest", lambda module: f"the last {module}".encode())
    assert halves([tmp_path])
    assert len(set(tmp_path.iterdir()) - {strange}) == 6
    assert not oldest.exists()


def test_code_that_is_found_counts_as_used(tmp_path, compiles):
    """Noted at most once in a while, so that most starts write nothing."""
    assert halves([tmp_path])
    [file] = tmp_path.iterdir()
    for days, is_noted in ((0.01, False), (40.0, True)):
        age(file, days * 86_400.0)
        before = file.stat().st_mtime
        assert halves([tmp_path])
        assert (file.stat().st_mtime > before) == is_noted
    assert compiles == ["halve"]


def test_the_next_place_is_taken_where_one_cannot_be_written(tmp_path, compiles, caplog):
    (tmp_path / "file").write_bytes(b"")
    refused, other = tmp_path / "file" / "folder", tmp_path / "other"
    caplog.set_level("WARNING", "kvstore.code")
    assert halves([refused, other])
    assert halves([refused, other])
    assert compiles == ["halve"]
    assert caplog.messages == []
    assert halves([refused])
    assert halves([refused])
    assert compiles == ["halve"] * 3
    assert "compiled code cannot be kept" in caplog.messages[0]


def test_a_folder_that_cannot_be_listed_keeps_code_all_the_same(tmp_path, compiles, monkeypatch):
    def refused(folder: Path, pattern: str) -> None:
        raise OSError("Stale file handle")

    monkeypatch.setattr(Path, "glob", refused)
    assert halves([tmp_path])
    assert halves([tmp_path])
    assert compiles == ["halve"]


def test_numba_cache_dir_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    place = code._path("kvstore.loops")
    folders = list(usual_folders(place))
    assert folders[0] == tmp_path
    assert folders[1].name == "__pycache__" or os.environ.get("PYTHONPYCACHEPREFIX")
    assert len(folders) == 3
