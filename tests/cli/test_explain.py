"""`kvtide explain` as a user runs it, on recorded requests."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from kvstore.reports import Difference, DifferenceKind
from tests.cli.explained import ANSWER, RULES, chat, code_client, explain
from tests.tokenizers import byte_tokenizer
from tiering.cli.explain_page import Page, visible


@pytest.fixture(scope="module")
def bytes_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def recorded(tmp_path):
    """recorded("A", request, ...) writes a file with these requests, one on each line."""

    def write(name, *requests: object):
        path = tmp_path / f"{name}.json"
        path.write_text("\n".join(map(json.dumps, requests)))
        return path

    return write


NEXT_TURN = (
    {"role": "assistant", "content": "It is 71 metres high."},
    {"role": "user", "content": "And how wide?"},
)


def test_a_date_in_the_system_prompt(recorded, bytes_dir):
    before, now = recorded("A", chat("Monday")), recorded("B", chat("Friday", *NEXT_TURN))
    done = explain(before, now, "--tokenizer", bytes_dir)
    assert done.exit_code == 1, done.output
    assert "B.json after A.json: 16 of" in done.output
    assert "It breaks at token 17, system message: timestamp." in done.output
    assert "A.json  <system>Today is ⟦Monday.⟧ You answer briefly" in done.output
    assert "B.json  <system>Today is ⟦Friday.⟧ You answer briefly" in done.output
    assert "What to do: A date stands before text" in done.output
    assert "plain layout" not in done.output


def test_the_same_as_json(recorded, bytes_dir):
    before, now = recorded("A", chat("Monday")), recorded("B", chat("Friday", *NEXT_TURN))
    done = explain(before, now, "--tokenizer", bytes_dir, "--block-tokens", 8, "--json")
    found = json.loads(done.output)
    system = f"<system>Today is Monday. {RULES}\n<user>How high is the tower?\n<assistant>"
    assert done.exit_code == 1
    assert found["layout"] == "chat template"
    assert found["shared"] == {"tokens": 17, "blocks": 2, "share": round(16 / found["prompt_tokens"], 4)}
    assert found["without_first"]["tokens"] == len(system) - len("Mon")
    assert found["without_first"] == found["without_any"]
    assert (found["difference"]["kind"], found["difference"]["section"]) == ("timestamp", "system message")
    assert set(found["difference"]) == {field.name for field in dataclasses.fields(Difference)}


def test_claude_codes_header_and_what_lies_behind_it(recorded, bytes_dir):
    before = recorded("A", code_client("36ee5"))
    now = recorded("B", code_client("0aaa9", {"role": "user", "content": "Is it 10:15?"}))
    done = explain(before, now, "--tokenizer", bytes_dir)
    assert done.exit_code == 1
    assert "system message: billing header." in done.output
    assert "CLAUDE_CODE_ATTRIBUTION_HEADER=0" in done.output
    assert "With that part at the end: about " in done.output
    assert "Cache breakpoint after system message, token " in done.output
    assert "behind the difference, so it is not read" in done.output
    assert (
        "plain layout of kvtide's own, because the tokenizer's chat template leaves out tools" in done.output
    )
    found = json.loads(explain(before, now, "--tokenizer", bytes_dir, "--json").output)
    assert found["shared"]["share"] < found["without_first"]["share"] <= found["without_any"]["share"] <= 1


def test_what_only_goes_on_breaks_nothing(recorded, bytes_dir):
    before, now = recorded("A", chat("Monday")), recorded("B", chat("Monday", *NEXT_TURN))
    for one, other in ((before, now), (before, before)):
        done = explain(one, other, "--tokenizer", bytes_dir)
        assert done.exit_code == 0, done.output
        assert "Nothing breaks it" in done.output
    template = json.loads(explain(before, now, "--tokenizer", bytes_dir, "--json").output)
    assert template["difference"] is None
    plain = explain(before, now, "--tokenizer", bytes_dir / "tokenizer.json")
    assert plain.exit_code == 0, plain.output
    assert "because the tokenizer has no chat template" in plain.output


def test_of_several_requests_the_most_alike_counts(recorded, bytes_dir):
    before = recorded(
        "A", chat("Friday"), chat("Monday"), {"messages": [{"role": "user", "content": "Hello"}]}
    )
    assert explain(before, recorded("B", chat("Friday", *NEXT_TURN)), "--tokenizer", bytes_dir).exit_code == 0
    log = recorded("log", chat("Friday"), chat("Monday"), chat("Monday", *NEXT_TURN))
    assert explain(log, "--tokenizer", bytes_dir).exit_code == 0
    done = explain(recorded("one", chat("Friday")), "--tokenizer", bytes_dir)
    assert done.exit_code == 2
    assert "has one request" in done.stderr


def test_with_the_demos_tokenizer(recorded, demo_dir):
    """Its own directory, and `demo` where the model is where it always is."""
    before, now = recorded("A", chat("Monday")), recorded("B", chat("Friday", *NEXT_TURN))
    done = explain(before, now, "--tokenizer", demo_dir)
    assert done.exit_code == 1, done.output
    assert "system message: timestamp" in done.output
    assert "<|im_start|>system↵Today is" in done.output


def test_many_differences_are_counted(recorded, bytes_dir):
    def numbered(first):
        lines = "".join(
            f"Step {first + number}: go on to the next one, and then look.\n" for number in range(30)
        )
        return {"messages": [{"role": "user", "content": lines}]}

    done = explain(recorded("A", numbered(100)), recorded("B", numbered(113)), "--tokenizer", bytes_dir)
    assert "Behind it they differ in 29 more places:" in done.output
    assert done.output.count(": counter") == 21
    assert "and 9 more" in done.output


def with_tools(*tools: object):
    return dict(chat("Monday"), tools=[*tools])


WEATHER, CALENDAR, LIBRARY = (
    {
        "name": name,
        "description": f"Has what is known of the {name}.",
        "input_schema": {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]},
    }
    for name in ("weather", "calendar", "library")
)


def turned(value):
    """The same JSON with the members of each object the other way round."""
    if isinstance(value, dict):
        return {key: turned(member) for key, member in reversed(value.items())}
    return [*map(turned, value)] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("tools", "kind"),
    [
        ((LIBRARY, WEATHER, CALENDAR), "reordered_documents"),
        ((CALENDAR, LIBRARY, WEATHER), "reordered_documents"),
        ((LIBRARY, CALENDAR, WEATHER), "reordered_documents"),
        ((WEATHER, LIBRARY, CALENDAR), "reordered_documents"),
        (turned([WEATHER, CALENDAR, LIBRARY]), "reordered_keys"),
    ],
)
def test_what_a_stable_order_would_gain(recorded, bytes_dir, tools, kind):
    """All but what comes last, as nothing else differs; and the exchange is told once."""
    before, now = (
        recorded("A", with_tools(WEATHER, CALENDAR, LIBRARY)),
        recorded("B", with_tools(*tools)),
    )
    found = json.loads(explain(before, now, "--tokenizer", bytes_dir, "--json").output)
    assert found["difference"]["kind"] == kind
    assert found["by_order"]
    assert (found["num_further"], found["further"]) == (0, [])
    assert found["without_first"]["tokens"] == found["prompt_tokens"]
    assert found["shared"]["tokens"] < found["prompt_tokens"] / 2
    done = explain(before, now, "--tokenizer", bytes_dir)
    assert "With these in the same order: about " in done.output
    assert "Behind it" not in done.output


def test_an_exchange_and_another_difference_behind_it(recorded, bytes_dir):
    before, now = with_tools(WEATHER, CALENDAR), with_tools(CALENDAR, WEATHER)
    now["messages"] = chat("Friday")["messages"]
    done = explain(recorded("A", before), recorded("B", now), "--tokenizer", bytes_dir)
    assert "tools: reordered documents." in done.output
    assert "Behind it they differ in one more place:" in done.output
    assert "message 1 (system): timestamp" in done.output
    assert "With all of this mended: about " in done.output


def test_passages_of_which_one_is_another(recorded, bytes_dir):
    """No order makes them the same: what stands behind them is what could be reused, and they are told once."""
    passages = [
        f"Passage of the {name}: it stands by the {name}." for name in ("mill", "bridge", "tower", "well")
    ]

    def asking(*numbers: int):
        text = "\n\n".join(["Use these.", *(passages[number] for number in numbers), RULES])
        return {"messages": [{"role": "user", "content": text}]}

    before, now = recorded("A", asking(0, 1, 2)), recorded("B", asking(1, 3, 0))
    found = json.loads(explain(before, now, "--tokenizer", bytes_dir, "--json").output)
    assert (found["difference"]["kind"], found["by_order"]) == ("reordered_documents", False)
    assert found["num_further"] == 0
    behind = len(RULES.rstrip()) + len("\n<assistant>")
    assert behind <= found["without_first"]["tokens"] - found["shared"]["tokens"] <= behind + 1


def test_a_time_and_an_identifier_are_one_stretch(recorded, bytes_dir):
    """What moving both gains is said, and neither is told again behind it."""

    def stamped(time, request_id):
        text = f"Current time: {time}\nRequest id: {request_id}\n{RULES}"
        return {"messages": [{"role": "system", "content": text}, {"role": "user", "content": "Hello"}]}

    before = recorded("A", stamped("2026-03-01T10:33:05Z", "3f2b9c1d-77aa-4c10-9f6e-0d9b1f0e2a55"))
    now = recorded("B", stamped("2026-03-01T11:02:59Z", "0e7d1b2c-1234-4c10-8f6e-aa9b1f0e2a77"))
    found = json.loads(explain(before, now, "--tokenizer", bytes_dir, "--json").output)
    assert (found["difference"]["kind"], found["difference"]["also"]) == ("timestamp", ["uuid"])
    assert found["num_further"] == 0
    assert found["without_first"]["tokens"] > len(RULES)


@pytest.mark.parametrize("gone", ["cch", "reached"])
def test_what_hosted_apis_cache_is_noted_where_a_breakpoint_is_reached_alone(recorded, bytes_dir, gone):
    before, now = code_client("36ee5"), code_client("36ee5" if gone == "reached" else "0aaa9")
    del before["tools"], now["tools"]
    done = explain(recorded("A", before), recorded("B", now), "--tokenizer", bytes_dir)
    assert ("no prefix below 1024 tokens" in done.output) == (gone == "reached")


def test_notes_on_models_and_on_what_hosted_apis_cache(recorded, bytes_dir):
    before, now = code_client("36ee5"), code_client("36ee5", {"role": "user", "content": "Go on."})
    now["model"] = "n"
    done = explain(recorded("A", before), recorded("B", now), "--tokenizer", bytes_dir)
    assert done.exit_code == 0
    assert "different models, m and n" in done.output
    assert "equal up to there" in done.output
    del before["tools"], now["tools"]
    short = explain(recorded("A", before), recorded("B", now), "--tokenizer", bytes_dir)
    assert "no prefix below 1024 tokens" in short.output


def test_on_a_terminal_the_difference_has_colours():
    shown = io.StringIO()
    page = Page(Console(file=shown, force_terminal=True, color_system="standard", width=200, highlight=False))
    page.difference(dataclasses.asdict(ANSWER.difference), ("B", "A"))
    assert "\x1b[1;31mFriday.\x1b[0m" in shown.getvalue()
    assert "\x1b[1;32mMonday.\x1b[0m" in shown.getvalue()
    assert "⟦" not in shown.getvalue()


def test_control_characters_do_not_reach_the_terminal(recorded, bytes_dir):
    evil = {"messages": [{"role": "user", "content": f"\x1b]0;gotcha\x07 [bold]{RULES} one"}]}
    other = {"messages": [{"role": "user", "content": f"\x1b]0;gotcha\x07 [bold]{RULES} \x9b2Jtwo"}]}
    done = explain(recorded("A", evil), recorded("B", other), "--tokenizer", bytes_dir)
    assert done.exit_code == 1
    assert not {"\x1b", "\x07", "\x9b"} & set(done.output)
    assert visible("a\x1b[0m\n\u202e[b]") == "a\\x1b[0m↵\\u202e[b]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["A", "B"], "needs --tokenizer"),
        (["A", "none", "--tokenizer", "D"], "cannot be read"),
        (["A", "OTHER", "--tokenizer", "D"], 'one with "prompt" or "text", or a list of messages'),
        (["A", "B", "--tokenizer", "/nowhere"], "/nowhere is not there"),
        (["A", "B", "--tokenizer", "EMPTY"], "neither a tokenizer_config.json nor a tokenizer.json"),
        (["A", "B", "--tokenizer", "A"], "is no tokenizer.json"),
        (["A", "B", "--tokenizer", "BROKEN"], "cannot be loaded"),
        (["BROKEN", "B", "--tokenizer", "D"], "cannot be read: Is a directory"),
        (["A", "B", "--tokenizer", "D", "--token-env", "X"], "--token-env goes with --url"),
        (["A", "B", "--url", "http://127.0.0.1:9"], "with --url there is one file"),
        (["A", "--url", "ftp://127.0.0.1"], "is no address of a kvtide"),
        (["A", "--url", "http://127.0.0.1:1"], "cannot be asked: "),
        (["A", "--url", "http://127.0.0.1:9", "--token-env", "KVTIDE_NO_SUCH"], "KVTIDE_NO_SUCH is not set"),
    ],
)
def test_wrong_input_gets_one_sentence(recorded, bytes_dir, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    places = {
        "A": recorded("A", chat("Monday")),
        "B": recorded("B", chat("Friday")),
        "D": bytes_dir,
        "EMPTY": tmp_path / "empty",
        "BROKEN": tmp_path / "broken",
        "none": tmp_path / "none",
        "OTHER": recorded("other", {"usage": 3}),
    }
    done = explain(*(places.get(argument, argument) for argument in arguments))
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert done.stderr.startswith("kvtide: ")
    assert len(done.stderr.splitlines()) == 1


def test_without_the_packages_it_says_so(recorded, bytes_dir):
    before, now = recorded("A", chat("Monday")), recorded("B", chat("Friday"))
    for place, package in ((bytes_dir, "transformers"), (bytes_dir / "tokenizer.json", "tokenizers")):
        code = f"import sys; sys.modules[{package!r}] = None; from tiering.cli import main; main()"
        command = [sys.executable, "-c", code, "explain", before, now, "--tokenizer", place]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
        assert done.returncode == 2
        assert f"needs the package {package}" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_tokenizer_json_needs_neither_torch_nor_transformers(recorded, bytes_dir):
    before, now = recorded("A", chat("Monday")), recorded("B", chat("Friday"))
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'jinja2']));"
        "from tiering.cli import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "explain",
        before,
        now,
        "--tokenizer",
        bytes_dir / "tokenizer.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 1, done.stderr
    assert "system message: timestamp" in done.stdout


# --- the page about it ----------------------------------------------------------------------------------------------

DOC = Path(__file__).parents[2] / "docs" / "explain.md"


def test_the_pages_example_prints_what_it_says(tmp_path, demo_dir):
    text = DOC.read_text()
    for name, request in zip("AB", re.findall(r"```json\n(.*?)```", text, re.DOTALL), strict=True):
        (tmp_path / f"{name}.json").write_text(request)
    printed = re.search(r"--tokenizer demo\n(.*?)```", text, re.DOTALL)[1]
    assert explain(tmp_path / "A.json", tmp_path / "B.json", "--tokenizer", demo_dir).output == printed


def test_the_page_has_every_kind():
    rows = re.findall(r"^\| `(\w+)` \|", DOC.read_text(), re.MULTILINE)
    assert rows == [kind.value for kind in DifferenceKind]
