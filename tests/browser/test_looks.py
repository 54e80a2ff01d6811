"""How the page looks: themes, contrast, narrow screens, and that nothing shifts."""

import pytest

from tests.browser.views import FULL, VIEWS, ask, view


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
