// The page: which view is shown, what is polled, and whether the server is there.

import { get, hasDeclined, hasToken, readiness, wiring } from "./api.js";
import { announce, askToken } from "./dialogs.js";
import { $, $$, say, show } from "./dom.js";
import { seconds } from "./format.js";
import * as explain from "./explain.js";
import * as jobs from "./jobs.js";
import * as overview from "./overview.js";
import * as prefixes from "./prefixes.js";
import * as requests from "./requests.js";
import { session } from "./session.js";
import * as settings from "./settings.js";

const VIEWS = { overview, prefixes, explain, requests, jobs, settings };
const POLL_MS = 2000;
const STALE_MS = 6500;
const SLOW_MS = 10_000; // Readiness, and how long between two tries at most while nobody answers.

const state = { view: "overview", heardAt: 0, gone: false, ready: null, failures: 0 };

// ---- theme ----

const dark = matchMedia("(prefers-color-scheme: dark)");
const shownDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";

function nameTheme() {
  $("#theme").setAttribute("aria-label", `Use the ${shownDark() ? "light" : "dark"} theme`);
}

function switchTheme() {
  const wanted = shownDark() ? "light" : "dark";
  const system = (dark.matches ? "dark" : "light") === wanted;
  if (system) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = wanted;
  try {
    if (system) localStorage.removeItem("kvtide-theme");
    else localStorage.setItem("kvtide-theme", wanted);
  } catch {
    // Then the choice holds until the page is left.
  }
  nameTheme();
}

// ---- whether the server is there ----

function heard(answered) {
  if (answered) state.heardAt = Date.now();
  const gone = !answered;
  if (gone !== state.gone) {
    state.gone = gone;
    announce(gone ? "The server does not answer." : "The server answers again.");
    if (!gone) {
      greet().then(() => VIEWS[state.view].refresh?.() ?? VIEWS[state.view].enter?.());
    }
  }
  connection();
}

function connection() {
  const box = $("#connection");
  const age = state.heardAt ? Date.now() - state.heardAt : null;
  const notReady = state.ready && state.ready.status !== "ok" && state.ready.status !== "ready";
  let [kind, words, banner] = ["live", "Live", ""];
  if (age === null && !state.gone) [kind, words] = ["waiting", "Connecting"];
  else if (state.gone) {
    const since = age === null ? "" : ` for ${seconds(age / 1000)}`;
    [kind, words, banner] = ["gone", "No answer", `The server does not answer${since}. What is shown is from then; trying again.`];
  } else if (notReady) {
    [kind, words, banner] = ["unready", "Not ready", (state.ready.reasons ?? []).map((reason) => reason.replace(/[.]?$/, ".")).join(" ")];
  } else if (age > STALE_MS && !document.hidden) [kind, words] = ["unready", `From ${seconds(age / 1000)} ago`];
  if (hasDeclined() && !state.gone) [kind, words, banner] = ["unready", "No token", "The server wants a token before it shows anything."];
  show($("#token-button"), hasToken() || hasDeclined());
  box.dataset.state = kind;
  say(box.lastChild, words);
  say($("#banner"), banner);
  $("#banner").dataset.state = kind;
  show($("#banner"), banner !== "");
  document.body.classList.toggle("is-stale", state.gone);
}

/** Who we are to the server. */
async function greet() {
  try {
    Object.assign(session, await get("session"));
  } catch (error) {
    if (error.status !== 404) return;
  }
  say($("#role"), session.role === "read" ? "read only" : "");
  show($("#role"), session.role === "read");
}

// ---- polling ----

async function poll() {
  try {
    const now = Date.now();
    if (!state.readyAt || now - state.readyAt > SLOW_MS / 2 || state.gone) {
      state.readyAt = now;
      state.ready = await readiness().catch(() => state.ready);
    }
    if (state.view === "overview" || state.gone) overview.update(await get("tiers"), state.ready);
    else if (state.view === "jobs" || state.view === "requests") await VIEWS[state.view].enter();
    else await get("session").catch((error) => error.status === 0 && Promise.reject(error));
    state.failures = 0;
  } catch (error) {
    state.failures += error.status === 0 ? 1 : 0;
    if (error.status) announce(error.message);
    else if (!("status" in error)) throw error;
  } finally {
    connection();
    const wait = Math.min(SLOW_MS, POLL_MS * Math.max(1, state.failures / 2));
    setTimeout(poll, document.hidden || hasDeclined() ? SLOW_MS : wait);
  }
}

// ---- views ----

function route() {
  const wanted = location.hash.replace(/^#\/?/, "").split("/")[0];
  const view = wanted in VIEWS ? wanted : "overview";
  const before = state.view;
  state.view = view;
  for (const link of $$(".views a")) {
    if (link.hash === `#/${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const name of Object.keys(VIEWS)) show($(`#view-${name}`), name === view);
  const name = $(`.views a[href="#/${view}"]`).textContent;
  document.title = view === "overview" ? "kvtide" : `${name} · kvtide`;
  if (before === "jobs" && view !== "jobs") jobs.leave();
  if (view === "jobs") jobs.follow();
  if (before !== view) {
    scrollTo(0, 0);
    announce(name);
  }
  Promise.resolve(VIEWS[view].enter?.()).catch((error) => error.message && announce(error.message));
}

function begin() {
  wiring.askToken = askToken;
  wiring.heard = heard;
  for (const view of Object.values(VIEWS)) view.start();
  show($("#main"), true); // Not before it has its rows: they would push down what is there.
  $("#theme").addEventListener("click", switchTheme);
  dark.addEventListener("change", nameTheme);
  nameTheme();
  $("#token-button").addEventListener("click", async () => {
    if (await askToken(hasToken() ? "change" : "needed")) await greet();
    route();
  });
  $(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // The hash names the view.
    $("#main").focus();
  });
  addEventListener("hashchange", route);
  setInterval(connection, 1000);
  greet().finally(() => {
    route();
    poll();
  });
}

begin();

