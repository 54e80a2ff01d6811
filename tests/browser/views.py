"""The page's views: opening one, and reading the rows of a table."""

import json

LIVE = "document.querySelector('#connection').dataset.state === 'live'"
VIEWS = {
    "overview": "document.querySelectorAll('#misses .miss').length > 3",
    "prefixes": "document.querySelectorAll('.node').length > 8 && document.querySelectorAll('.grid-row:not(.waiting)').length > 8",
    "explain": "document.querySelector('.divergence')",
    "requests": "document.querySelectorAll('#requests tbody tr').length > 20",
    "jobs": "document.querySelectorAll('.event').length > 20",
    "settings": "document.querySelectorAll('.setting').length > 3 && document.querySelector('.namespace')",
}
FULL, READ = "full-token-0123456789", "read-token-0123456789"


def view(open_tab, server, name, **how):
    tab = open_tab(f"{server.url}/#/{name}", **how)
    tab.until(LIVE)
    tab.until(VIEWS[name])
    return tab


def rows(tab, selector):
    return tab.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.innerText)")


def ask(tab, prompt, shape="text"):
    tab.click(f"[data-shape={shape}]")
    tab.js("document.querySelector('#prompt').select()")
    tab.type(prompt)
    tab.press("Enter", modifiers=2)
