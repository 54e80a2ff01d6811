"""The page on an engine that runs the demo's model: what it shows is what was done."""

import json
from collections.abc import Iterator

import pytest

from kvstore.admin import AdminServer
from tests.browser.served import served
from tests.browser.test_page import LIVE, ask, rows
from tests.browser.traffic import QUESTIONS, SHORT, conversation, serve_some

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def live(live_engine) -> Iterator[AdminServer]:
    with served(live_engine) as server:
        serve_some(live_engine)  # while figures are sampled
        yield server


def view(open_tab, live, name, **how):
    tab = open_tab(f"{live.url}/#/{name}", **how)
    tab.until(LIVE)
    return tab


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_tiers_hold_and_serve(open_tab, live, pictures, dark):
    tab = view(open_tab, live, "overview", dark=dark)
    tab.until("document.querySelectorAll('#misses .miss').length > 1")
    tab.until("document.querySelectorAll('.chart path').length > 3")
    for tier in ("device", "host", "disk"):
        text = tab.text(f".tier.{tier}")
        assert "Ready" in text and "MiB of" in text, text
    assert (
        tab.js("document.querySelector('#summary dd').innerText").rstrip("%\xa0").replace(".", "").isdigit()
    )
    assert "Differs" in tab.text("#misses")
    moved = {line.split("\t")[0]: line.split("\t") for line in tab.text("#transfers tbody").split("\n")}
    assert all(moved[name][4].strip() != "0" for name in ("Demote", "Promote", "Read", "Write")), moved
    tab.picture(pictures / f"live-overview-{'dark' if dark else 'light'}.png")


def test_prefixes_are_those_of_the_requests(open_tab, live, live_engine, pictures):
    tab = view(open_tab, live, "prefixes")
    tab.until("document.querySelectorAll('.node').length > 4")
    tab.until("document.querySelectorAll('.grid-row:not(.waiting)').length > 0")
    assert "Harbour Books" in tab.text("#runs")
    tab.js("document.querySelector('.grid-row .twist').click()")
    tab.until("document.querySelectorAll('.grid-row[aria-level=\"2\"]:not(.waiting)').length > 1")
    tab.js("document.querySelector('.grid-row .label').click()")
    tab.until("document.querySelector('#detail .prose')")
    assert "Harbour Books" in tab.text("#detail .prose")
    tab.picture(pictures / "live-prefixes.png")


def test_a_prompt_with_another_time_differs_there(open_tab, live, pictures):
    tab = view(open_tab, live, "explain")
    ask(tab, json.dumps(conversation("2026-11-29 09:59:30", QUESTIONS[2])), "messages")
    tab.until("document.querySelector('#explain-result .side-asked mark')")
    assert "59" in "".join(rows(tab, "#explain-result .side-asked mark"))
    assert "Timestamp" in tab.text("#explain-result .difference")
    assert "system" in tab.text("#explain-result .difference header")
    tab.picture(pictures / "live-explain.png")


def test_requests_are_listed_with_what_served_them(open_tab, live, pictures):
    tab = view(open_tab, live, "requests")
    tab.until("document.querySelectorAll('#requests tbody tr').length > 8")
    tab.click("#requests tbody tr:nth-child(1) button")
    tab.until("document.querySelector('#request-detail .parts')")
    tab.picture(pictures / "live-requests.png")


def test_jobs_do_what_they_say_and_events_tell_of_it(open_tab, live, live_engine, pictures):
    tab = view(open_tab, live, "jobs")
    tab.click("#actions li:nth-child(1) button")
    tab.until("document.querySelector('#jobs')?.innerText.includes('Flush: done')")
    tab.click("#actions li:nth-child(2) button")
    tab.until("document.querySelector('#jobs')?.innerText.includes('All are sound')", timeout_s=30)
    before = tab.js("document.querySelectorAll('.event').length")
    live_engine.generate(conversation("2026-11-29 10:00:00", QUESTIONS[3]), SHORT)
    tab.until(f"document.querySelectorAll('.event').length > {before}")
    tab.picture(pictures / "live-jobs.png")


def test_a_setting_is_changed_in_the_engine(open_tab, live, live_engine, pictures):
    tab = view(open_tab, live, "settings", allow=("400",))
    tab.until("document.querySelector('#setting-ttl_s')")
    tab.picture(pictures / "live-settings.png")
    tab.js("document.querySelector('#setting-ttl_s').select()")
    tab.type("7200")
    tab.click("#settings-apply")
    tab.until("document.querySelector('.toast')?.innerText === 'Settings changed.'")
    assert live_engine.settings()["ttl_s"] == 7200
    tab.js("document.querySelector('#setting-host_bytes').select()")
    tab.type("64 GiB")
    tab.click("#settings-apply")
    tab.until("!document.querySelector('#setting-host_bytes-error').hidden")
