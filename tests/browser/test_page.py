"""The page in a browser, on generated data: every view, by mouse and by keyboard, in all themes and widths."""

import json
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from kvstore.reports import MAX_PAGE_ROWS
from tests.browser.generated import HOSTILE, Generated
from tests.browser.served import served

LIVE = "document.querySelector('#connection').dataset.state === 'live'"
VIEWS = {
    "overview": "document.querySelectorAll('#misses .miss').length > 3",
    "prefixes": "document.querySelectorAll('.node').length > 8 && document.querySelectorAll('.grid-row:not(.waiting)').length > 8",
    "explain": "document.querySelector('.divergence')",
    "requests": "document.querySelectorAll('#requests tbody tr').length > 20",
    "jobs": "document.querySelectorAll('.event').length > 20",
    "settings": "document.querySelectorAll('.setting').length > 3 && document.querySelector('.namespace')",
}


def view(open_tab, server, name, **how):
    tab = open_tab(f"{server.url}/#/{name}", **how)
    tab.until(LIVE)
    tab.until(VIEWS[name])
    return tab


def rows(tab, selector):
    return tab.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.innerText)")


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


def ask(tab, prompt, shape="text"):
    tab.click(f"[data-shape={shape}]")
    tab.js("document.querySelector('#prompt').select()")
    tab.type(prompt)
    tab.press("Enter", modifiers=2)


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


# ---- who may, and what is missing ------------------------------------------------------------------------------------

FULL, READ = "full-token-0123456789", "read-token-0123456789"


def give_token(tab, token):
    tab.until("document.querySelector('#token-dialog').open")
    assert tab.js("document.activeElement.id") == "token-input"
    tab.type(token)
    tab.press("Enter")


def test_a_token_is_asked_for_and_kept_in_the_tab_only(open_tab, small):
    tab = open_tab(small(token=FULL, read_token=READ).url, allow=("401",))
    give_token(tab, "wrong-token-0123456789")
    tab.until(
        "!document.querySelector('#token-error').hidden && document.querySelector('#token-dialog').open"
    )
    give_token(tab, FULL)
    tab.until(LIVE)
    tab.until(VIEWS["overview"])
    assert tab.js("sessionStorage.getItem('kvtide-token')") == FULL
    assert tab.js("localStorage.length + document.cookie.length") == 0
    tab.js("location.hash = '#/jobs'")
    tab.until(VIEWS["jobs"])
    assert not any(FULL in url for url in tab.requests)


def test_who_gives_no_token_is_not_asked_again_until_they_want_to(open_tab, small):
    tab = open_tab(small(token=FULL).url, allow=("401",))
    tab.until("document.querySelector('#token-dialog').open")
    tab.press("Escape")
    tab.until("document.querySelector('#connection').innerText === 'No token'")
    assert "wants a token" in tab.text("#banner")
    assert not tab.js("document.querySelector('#token-dialog').open")
    tab.click("#token-button")
    give_token(tab, FULL)
    tab.until(LIVE)
    tab.until(VIEWS["overview"])
    tab.click("#token-button")
    assert tab.text("#token-title") == "Use another token"
    tab.click("#token-forget")
    tab.until("document.querySelector('#token-title').innerText === 'A token is needed'")
    assert tab.js("sessionStorage.length") == 0


def test_who_may_only_read_can_look_and_ask_and_nothing_else(open_tab, small):
    tab = open_tab(small(token=FULL, read_token=READ).url + "/#/jobs", allow=("401",))
    give_token(tab, READ)
    tab.until(VIEWS["jobs"])
    assert tab.text("#role") == "read only"
    assert tab.js("[...document.querySelectorAll('#actions button')].every((button) => button.disabled)")
    tab.js("location.hash = '#/prefixes'")
    tab.until("document.querySelectorAll('.grid-row:not(.waiting)').length > 8")
    tab.click(".grid-row:nth-child(2) .label")
    tab.until("document.querySelector('#detail .danger')")
    assert tab.js("document.querySelector('#detail .danger').disabled")
    assert "<|" not in tab.text("#runs"), "text is not for everybody"
    tab.js("location.hash = '#/explain'")
    ask(tab, "anything")
    tab.until("document.querySelector('#explain-result .parts')")
    assert tab.js("document.querySelector('#explain-warm').disabled")


class Bare:
    """What a cache without an engine has of a subject."""

    def __init__(self) -> None:
        self._whole = Generated(400)
        for name in ("events", "prefixes", "prefix", "demote_prefix", "remove_prefix"):
            setattr(self, name, getattr(self._whole, name))

    def stats(self):
        cache = self._whole.stats()["cache"]
        cache["tiers"]["disk"].update(ready=False, overdue_reads=2)
        return cache


def test_a_cache_without_an_engine_says_what_it_cannot_show(open_tab, small):
    """And is not asked for it: there is no 501 in the console."""
    server = small(Bare())
    tab = view(open_tab, server, "prefixes")
    for name, selector in {
        "requests": "#requests-note",
        "settings": "#settings-form",
        "explain": "#prompt-hint",
    }.items():
        tab.js(f"location.hash = '#/{name}'")
        tab.until(f"document.querySelector('{selector}').innerText.includes('without an engine')")
    tab.js("location.hash = '#/jobs'")
    tab.until(VIEWS["jobs"])
    assert tab.js("document.querySelector('#actions button').disabled")
    tab.js("location.hash = '#/overview'")
    tab.until("document.querySelector('.tier.disk .tier-reason')?.innerText.includes('2 of its reads hang')")
    assert "Not ready" in tab.text(".tier.disk")
    assert "no engine" in tab.text("#summary")


def test_the_server_goes_and_comes_back(open_tab):
    subject = Generated(400)
    with served(subject) as server:
        port = server.port
        tab = open_tab(
            f"{server.url}/#/overview",
            allow=("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE"),
        )
        tab.until(VIEWS["overview"])
    tab.until("document.querySelector('#connection').dataset.state === 'gone'")
    assert "does not answer" in tab.text("#banner")
    assert tab.js("document.querySelector('#announcer').innerText").startswith("The server does not")
    assert "GiB" in tab.text(".tier.host"), "what was known stays"
    with served(subject, port=port):
        tab.until(LIVE, timeout_s=20)
        assert tab.js("document.querySelector('#banner').hidden")
        tab.js("location.hash = '#/jobs'")
        tab.until(VIEWS["jobs"])


# ---- what came from outside is never markup ------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(VIEWS))
def test_data_is_text_and_nothing_else(open_tab, generated, name):
    """Each view shows hostile text somewhere; `open_tab` looks whether it ran."""
    tab = view(open_tab, generated, name, allow=("404",))
    if name == "prefixes":
        tab.js("document.querySelectorAll('.grid-row')[1].querySelector('.label').click()")
        tab.until("document.querySelector('#detail .prose')")
        tab.js(
            "[...document.querySelectorAll('.grid-row')].find((row) => row.branch.run.key.startsWith('00')).querySelector('.label').click()"
        )
        tab.until("!document.querySelector('#list-error').hidden")
    elif name == "requests":
        tab.click("#requests tbody tr:has(.state.error) button")
        tab.until("document.querySelector('#request-detail .form-error')")
    if name in {"prefixes", "requests", "jobs", "settings"}:
        assert "onerror" in tab.js("document.querySelector('main').innerText")
    assert tab.js("document.querySelectorAll('main script, main img').length") == 0


# ---- how it looks --------------------------------------------------------------------------------------------------


def test_a_theme_is_chosen_and_remembered(open_tab, generated):
    tab = view(open_tab, generated, "overview")
    light = tab.js("getComputedStyle(document.body).backgroundColor")
    tab.click("#theme")
    dark = tab.js("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    tab.open(f"{generated.url}/?again#/overview")
    assert tab.js("getComputedStyle(document.body).backgroundColor") == dark
    assert "light" in tab.js("document.querySelector('#theme').getAttribute('aria-label')")
    tab.click("#theme")
    assert tab.js("getComputedStyle(document.body).backgroundColor") == light


def test_the_system_chooses_where_the_user_has_not(open_tab, generated):
    tab = view(open_tab, generated, "overview", dark=True)
    dark = tab.js("getComputedStyle(document.body).backgroundColor")
    tab.prefer(dark=False)
    assert tab.js("getComputedStyle(document.body).backgroundColor") != dark


CONTRAST = """(() => {
    const rgb = (text) => {
        const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data];
    };
    const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, part, at) => {
        const v = c[at] / 255; return sum + part * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
    const poor = new Set();
    for (const node of document.querySelectorAll('body *')) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
        const box = node.getBoundingClientRect();
        if (!own || box.width < 2 || box.height < 2 || node.closest('[hidden], .sr, :disabled, dialog')) continue;
        const style = getComputedStyle(node);
        if (style.visibility === 'hidden') continue;
        let under = node, back = [0, 0, 0, 0];
        while (under && back[3] < 255) { back = rgb(getComputedStyle(under).backgroundColor); under = under.parentElement; }
        const ink = rgb(node instanceof SVGElement ? style.fill : style.color);
        const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) poor.add(`${node.tagName}.${node.getAttribute('class')} "${node.textContent.slice(0, 30)}" ${ratio.toFixed(2)}`);
    }
    return [...poor];
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", list(VIEWS))
def test_text_is_readable_and_pictures_are_kept(open_tab, generated, pictures, name, dark):
    """WCAG AA: 4.5 to 1, of every text against what is behind it."""
    tab = view(open_tab, generated, name, dark=dark)
    if name == "explain":
        ask(tab, "You are a careful assistant of Example Ltd.")
        tab.until("document.querySelector('#explain-result .parts')")
    elif name == "prefixes":
        tab.click(".grid-row:nth-child(1) .twist")
        tab.js("document.querySelectorAll('.node[aria-level=\"2\"]')[0].click()")
        tab.until(
            "document.querySelectorAll('#crumbs button').length === 2 && document.querySelector('#detail .facts')"
        )
        tab.until("document.querySelectorAll('.node[aria-level=\"3\"]').length > 8")
    elif name == "requests":
        tab.click("#requests tbody tr:nth-child(12) button")
        tab.until("document.querySelector('#request-detail .parts')")
    assert tab.js(CONTRAST) == []
    tab.picture(pictures / f"{name}-{'dark' if dark else 'light'}.png")


@pytest.mark.parametrize("name", list(VIEWS))
def test_it_fits_a_narrow_screen(open_tab, generated, pictures, name):
    tab = view(open_tab, generated, name, width=380)
    if name == "explain":
        ask(tab, "You are a careful assistant of Example Ltd.")
        tab.until("document.querySelector('#explain-result .parts')")
    tab.picture(pictures / f"{name}-380.png")
    assert tab.js("document.documentElement.scrollWidth <= innerWidth"), "nothing to scroll sideways"


def test_dialogs_have_pictures(open_tab, small, pictures):
    tab = open_tab(small(token=FULL).url, allow=("401",))
    tab.until("document.querySelector('#token-dialog').open")
    tab.picture(pictures / "token.png", whole=False)


def test_nothing_shifts_while_figures_come(open_tab, generated):
    tab = view(open_tab, generated, "overview")
    shift = """new Promise((done) => { let sum = 0; new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) sum += entry.value; }).observe({type: 'layout-shift', buffered: true});
        setTimeout(() => done(sum), 300); })"""
    assert tab.js(shift) < 0.1


def test_every_control_has_a_name_and_shows_its_focus(open_tab, generated):
    tab = view(open_tab, generated, "prefixes")
    unnamed = tab.js(
        """[...document.querySelectorAll('button, input, select, textarea, a, [role=treeitem], [role=slider], dialog, section')]
        .filter((each) => !each.closest('dialog:not([open])') && !(each.innerText?.trim() || each.textContent.trim() || each.getAttribute('aria-label') || each.labels?.length
            || each.getAttribute('aria-labelledby')))
        .map((each) => each.outerHTML.slice(0, 90))"""
    )
    assert unnamed == []
    tab.press("Tab")
    assert tab.js("document.activeElement.className") == "skip"
    tab.press("Enter")
    assert tab.js("document.activeElement.id") == "main"
    for _ in range(12):
        tab.press("Tab")
        assert tab.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
