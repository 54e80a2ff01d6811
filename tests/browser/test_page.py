"""The page in a browser, on generated data: every view, by mouse and by keyboard, in all themes and widths."""

import json
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from kvstore.reports import MAX_PAGE_ROWS
from tests.browser.generated import HOSTILE
from tests.browser.views import LIVE, ask, rows, view

# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_every_tier_is_shown_with_its_fill_hits_and_flows(open_tab, generated):
    tab = view(open_tab, generated, "overview")
    assert tab.js("document.querySelectorAll('.tier').length") == 3
    for text in rows(tab, ".tier"):
        assert "Ready" in text and "GiB of" in text and "Evicted" in text
        assert "%" in text.splitlines()[2], "a hit rate"
    assert [line.split("\n")[0] for line in rows(tab, ".flow")] == ["Demote", "Promote", "Write", "Read"]
    assert all("MiB/s" in line for line in rows(tab, ".flow"))
    assert tab.js("document.querySelectorAll('.flow.moving').length") == 4
    assert "1.59 : 1" in tab.text(".tier.disk").replace("\xa0", " ")


def test_figures_go_on(open_tab, generated):
    tab = view(open_tab, generated, "overview")
    before = tab.text("#transfers")
    tab.until(f"document.querySelector('#transfers').innerText !== {json.dumps(before)}")


def test_hit_rates_over_time_are_read_by_keyboard_and_as_a_table(open_tab, generated):
    tab = view(open_tab, generated, "overview")
    assert tab.js("document.querySelectorAll('.chart path.device').length") == 2, (
        "a gap, in which nobody measured"
    )
    tab.js("document.querySelector('.chart').focus()")
    tab.press("ArrowLeft", "ArrowLeft")
    told = tab.js("document.querySelector('.chart').getAttribute('aria-valuetext')")
    assert "Device" in told and "tokens" in told
    assert tab.text(".readout .when") in told
    tab.press("Home")
    assert tab.js("document.querySelector('.chart').getAttribute('aria-valuenow')") == "0"
    tab.click("#history-fold summary")
    tab.until("document.querySelectorAll('#history-table tbody tr').length > 50")


def test_misses_have_a_name_a_sentence_and_a_share_each(open_tab, generated):
    tab = view(open_tab, generated, "overview")
    found = rows(tab, ".miss")
    assert found[0].split("\n")[0] == "Never seen"
    assert "No prompt that began like this has been computed here" in found[0]
    shares = [float(line.replace("\xa0", "").split("\n")[-1].rstrip("%")) for line in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_a_request_has_a_report(open_tab, generated):
    tab = view(open_tab, generated, "requests")
    tab.click("#requests tbody tr:nth-child(4) button")
    tab.until("document.querySelector('#request-detail .parts')")
    assert "were served from cache" in tab.text("#request-detail")
    assert tab.js("document.activeElement.id") == "request-detail"


def test_jobs_run_and_tell_what_became_of_them(open_tab, small):
    tab = view(open_tab, small(), "jobs")
    tab.click("#actions li:nth-child(2) button")
    tab.until("document.querySelector('#jobs')?.innerText.includes('104,200')")
    tab.click("#actions li:nth-child(1) button")
    tab.until("document.querySelector('#jobs .failed-text')")
    assert HOSTILE in tab.text("#jobs .failed-text")


def test_draining_asks_first_and_says_that_the_engine_is_not_ready(open_tab, small):
    tab = view(open_tab, small(), "jobs", allow=("/readyz",))
    tab.click("#actions li:nth-child(5) button")
    tab.until("document.querySelector('#confirm-dialog').open")
    assert tab.js("document.activeElement.id") == "confirm-no"
    tab.click("#confirm-yes")
    tab.until("document.querySelector('#connection').dataset.state === 'unready'")
    assert "drains" in tab.text("#banner")
    tab.click("#actions li:nth-child(6) button")
    tab.until(LIVE)


def test_events_come_in_and_are_filtered_and_paused(open_tab, small):
    tab = view(open_tab, small(), "jobs")
    first = tab.js("document.querySelector('.event').innerText")
    tab.until(f"document.querySelector('.event').innerText !== {json.dumps(first)}")
    tab.js(
        "(() => { const s = document.querySelector('#events-kind'); s.value = 'demoted'; s.dispatchEvent(new Event('change')); })()"
    )
    assert set(rows(tab, ".event .kind")) == {"Demoted"}
    tab.click("#events-pause")
    assert tab.text("#events-note") == "Paused"


def test_named_caches_and_tenants_are_shown(open_tab, small):
    tab = view(open_tab, small(), "settings")
    tab.until("document.querySelectorAll('#kept-caches tbody tr').length === 2")
    tab.until("document.querySelectorAll('#kept-tenants tbody tr').length === 3")
    first, handbook = rows(tab, "#kept-caches tbody tr")
    assert HOSTILE in first and "2 lost" in first and "until deleted" in first
    assert "whole" in handbook and "min" in handbook
    named, unknown, nobodys = rows(tab, "#kept-tenants tbody tr")
    assert HOSTILE in named and "host 8" in named and "disk 0.25" in named
    assert "…" in unknown and "no tenant" in nobodys


def test_settings_are_changed_and_what_is_wrong_is_said_at_the_field(open_tab, small):
    server = small()
    tab = view(open_tab, server, "settings", allow=("400",))

    def give(name, text):
        tab.js(f"document.querySelector('#setting-{name}').select()")
        tab.type(text)

    give("host_bytes", "a lot")
    tab.until("!document.querySelector('#setting-host_bytes-error').hidden")
    assert tab.js("document.querySelector('#settings-apply').disabled")
    give("host_bytes", "65 GiB")
    tab.click("#settings-apply")
    tab.until("document.querySelector('#setting-host_bytes-error').innerText.includes('mapped at the start')")
    assert tab.js("document.activeElement.id") == "setting-host_bytes"
    give("host_bytes", "32 GiB")
    give("ttl_s", "3600")
    assert tab.text("#settings-apply") == "Apply 2\xa0changes"
    tab.click("#settings-apply")
    tab.until("document.querySelector('.toast')?.innerText === 'Settings changed.'")
    assert tab.js("document.querySelector('#setting-host_bytes').value") == "32 GiB"


# ---- prefixes --------------------------------------------------------------------------------------------------------


def test_the_tree_is_walked_and_zoomed_by_keyboard(open_tab, generated):
    tab = view(open_tab, generated, "prefixes")
    tab.until("document.querySelectorAll('.node[aria-level=\"3\"]').length > 3")

    def at():
        return tab.js(
            "(({id, level, run, index}) => ({id, level, index, run: run?.key}))(document.activeElement.node)"
        )

    assert tab.js("document.querySelectorAll('.icicle [tabindex=\"0\"]').length") == 1, "one stop for Tab"
    tab.js("document.querySelector('.icicle [tabindex=\"0\"]').focus()")
    assert at()["level"] == 0
    tab.press("ArrowRight")
    assert (at()["level"], at()["index"]) == (1, 0)
    tab.press("ArrowDown")
    assert at()["index"] == 1
    tab.press("End")
    assert at().get("run") is None, "the rest comes last"
    tab.press("Home", "ArrowRight")
    assert at()["level"] == 2
    tab.press("ArrowLeft", "Enter")
    tab.until("document.querySelectorAll('#crumbs button').length === 2")
    zoomed = at()
    assert zoomed["level"] == 0 and zoomed["run"]
    tab.until("document.querySelector('#detail .facts')")
    assert zoomed["run"] in tab.text("#detail .key").replace("\n", "")
    tab.press("Escape")
    tab.until("document.querySelectorAll('#crumbs button').length === 1")
    tab.until("document.activeElement.node?.level === 0")


def test_the_list_is_walked_by_keyboard(open_tab, generated):
    tab = view(open_tab, generated, "prefixes")
    tab.js("document.querySelector('.grid-row[tabindex=\"0\"]').focus()")

    def place():
        return tab.js("document.activeElement.place")

    tab.press("ArrowDown", "ArrowDown", "ArrowUp")
    assert place() == 1
    tab.press("ArrowRight")
    tab.until("document.activeElement.getAttribute('aria-expanded') === 'true'")
    tab.until("document.querySelectorAll('.grid-row[aria-level=\"2\"]:not(.waiting)').length > 5")
    tab.press("ArrowRight")
    assert tab.js("document.activeElement.getAttribute('aria-level')") == "2"
    tab.press("ArrowLeft", "ArrowLeft")
    assert place() == 1
    assert tab.js("document.activeElement.getAttribute('aria-expanded')") == "false"
    tab.press("End")
    tab.until("!document.activeElement.classList.contains('waiting')")
    assert (
        place()
        == tab.js("Number(document.querySelector('.grid').getAttribute('aria-rowcount')) - 2")
        > 10_000
    )
    tab.press("Enter")
    tab.until("document.activeElement.id === 'detail'")


def test_a_hundred_thousand_prefixes_stay_pleasant(open_tab, generated, pictures):
    """What is asked for, what the page holds and how long it takes is bounded, wherever one looks."""
    measured = {}
    began = time.monotonic()
    tab = view(open_tab, generated, "prefixes")
    measured["seconds_until_shown"] = round(time.monotonic() - began, 3)
    painted = tab.js("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    measured["first_paint_ms"] = round(painted)
    assert painted < 2000
    tab.click("#list-filter [name=flat]")
    tab.until("document.querySelector('#list-note').innerText.startsWith('100,000')")
    took = tab.js(
        """(async () => {
        const body = document.querySelector('.grid-body'), frames = [];
        for (let i = 1; i <= 60; i += 1) {
            body.scrollTop = body.scrollHeight * i / 60;
            const before = performance.now();
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
            frames.push(performance.now() - before);
        }
        return frames.sort((a, b) => a - b);
        })()"""
    )
    measured["scroll_median_ms"] = round(took[30])
    measured["scroll_worst_ms"] = round(took[-1])
    assert took[30] < 100, "two frames"
    tab.until("!document.querySelector('.grid-row:last-child').classList.contains('waiting')")
    assert tab.js("document.querySelectorAll('.grid-row').length") < 60
    assert tab.js("document.querySelectorAll('*').length") < 2500
    pages = [parse_qs(urlsplit(url).query) for url in tab.requests if "/prefixes?" in url]
    measured["pages"], measured["elements"] = len(pages), tab.js("document.querySelectorAll('*').length")
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "prefixes-100000.json").write_text(json.dumps(measured, indent=2) + "\n")
    assert len(pages) < 60
    assert all(int(page["limit"][0]) <= MAX_PAGE_ROWS for page in pages)


def test_filters_look_at_all_depths(open_tab, generated):
    tab = view(open_tab, generated, "prefixes")
    tab.js("document.querySelector('#list-filter [name=min_hits]').focus()")
    tab.type("500")
    tab.press("Enter")
    tab.press("Tab")
    tab.until("/^[\\d,]+/.exec(document.querySelector('#list-note').innerText)[0] !== '16,076'")
    assert tab.js("document.querySelector('#list-filter [name=flat]').disabled")
    hits = tab.js("[...document.querySelectorAll('.grid-row')].map((row) => row.branch.run.hits)")
    assert hits and min(hits) >= 500
    tab.click("#list-reset")
    tab.until("!document.querySelector('#list-filter [name=flat]').disabled")


def test_a_key_is_searched_for(open_tab, generated):
    tab = view(open_tab, generated, "prefixes", allow=("404",))
    key = tab.js("document.querySelectorAll('.grid-row')[9].branch.run.key")
    tab.click("#list-filter [name=key]")
    tab.type(key)
    tab.press("Enter")
    tab.until(f"document.querySelector('#detail .key')?.innerText === '{key}'")
    tab.js("document.querySelector('#list-filter [name=key]').select()")
    tab.type("0" * 64)
    tab.press("Enter")
    tab.until("document.querySelector('#list-error').innerText.includes('No run holds')")
    tab.js("document.querySelector('#list-filter [name=key]').select()")
    tab.type("Medical SCRIBE")
    tab.press("Enter")
    tab.until(
        "[...document.querySelectorAll('.grid-row .label')].every((row) => row.innerText.includes('medical scribe'))"
    )
    assert not tab.text("#list-note").startswith("0 runs")
    tab.click("#list-reset")
    tab.until("!document.querySelector('#list-filter [name=flat]').disabled")


def test_a_run_is_removed_after_a_question(open_tab, small):
    tab = view(open_tab, small(), "prefixes")
    before = tab.text("#list-note")
    tab.js("document.querySelectorAll('.grid-row')[8].querySelector('.label').click()")
    tab.until("document.querySelector('#detail .danger')")
    tab.click("#detail .danger")
    tab.until("document.querySelector('#confirm-dialog').open")
    tab.press("Escape")
    tab.until("!document.querySelector('#confirm-dialog').open")
    assert tab.text("#list-note") == before
    tab.click("#detail .danger")
    tab.click("#confirm-yes")
    tab.until("document.querySelector('.toast')?.innerText.includes('removed')")
    tab.until(f"document.querySelector('#list-note').innerText !== {json.dumps(before)}")


# ---- explain ---------------------------------------------------------------------------------------------------------


def test_a_difference_is_highlighted_on_both_sides(open_tab, generated):
    tab = view(open_tab, generated, "explain")
    ask(tab, "You are a careful assistant of Example Ltd.")
    tab.until("document.querySelector('#explain-result .parts')")
    assert rows(tab, "#explain-result .side-asked mark") == ["41", "07Z"]
    assert rows(tab, "#explain-result .side-cached mark") == ["38", "52Z"]
    text = tab.text("#explain-result")
    assert "1,824 of 2,905" in text.replace("\xa0", " ")
    assert "Timestamp" in text and "Put it behind what does not change" in text
    assert tab.js("document.querySelectorAll('#explain-result .parts button').length") == 6
    tab.click("#explain-result .parts button:nth-child(4)")
    assert "Evicted" in tab.text("#explain-result .part-list .chosen")


def test_messages_and_token_ids_are_sent_as_such_and_mistakes_are_said_at_once(open_tab, generated):
    tab = view(open_tab, generated, "explain")
    ask(tab, "[{role: user}]", "messages")
    tab.until("document.querySelector('#prompt-error').innerText.startsWith('This is not JSON')")
    ask(tab, '[{"role": "user", "content": "Hello"}]', "messages")
    tab.until("document.querySelector('#explain-result .parts')")
    ask(tab, "1, 2, three", "token_ids")
    tab.until("document.querySelector('#prompt-error').innerText.includes('three')")
    ask(tab, "1, 2, 3", "token_ids")
    tab.until("document.querySelector('#prompt-error').hidden")


def test_where_text_is_not_shown_the_page_says_so(open_tab, small):
    tab = view(open_tab, small(show_text=False), "explain")
    ask(tab, "anything")
    tab.until("document.querySelector('#explain-result .difference .hint')?.innerText.includes('show_text')")
    assert tab.text("#explain-result .chip") == "Timestamp"
    assert not rows(tab, "#explain-result .sides")


def test_without_a_tokenizer_the_difference_is_shown_as_token_ids(open_tab, small):
    tab = view(open_tab, small(), "explain")
    ask(tab, "ids")
    tab.until("document.querySelector('#explain-result .side-asked mark')")
    assert rows(tab, "#explain-result .side-asked mark") == ["3174", "2589"]
    assert "token ids" in tab.text("#explain-result .sides")
