"""Who may do what on the page, what is missing where there is less to show, and that what came from outside is never markup."""

import pytest

from tests.browser.generated import Generated
from tests.browser.served import served
from tests.browser.views import FULL, LIVE, READ, VIEWS, ask, view

# ---- who may, and what is missing ------------------------------------------------------------------------------------


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
