// The last requests, and the report of one.

import { get } from "./api.js";
import { $, h, keyed, say, show } from "./dom.js";
import { ago, count, percent, seconds, short } from "./format.js";
import { explanationParts } from "./explanation.js";
import { BARE, can, isMissing, session } from "./session.js";
import { sentence, STATE_TEXT, TIERS, TIER_TEXT } from "./words.js";

const COLUMNS = ["Request", "State", "Came", "Prompt", "Cached", "From", "Reply", "Queued", "Loaded", "Prefilled", "First token"];
const LEFT = new Set(["State", "From"]);
let chosen = null;

export function start() {
  $("#requests").append(
    h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col", class: LEFT.has(name) ? "left" : "" }, name)))), h("tbody"));
  $("#requests").addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (row) open(row.request.number);
  });
}

const cachedOf = (report) => TIERS.reduce((sum, tier) => sum + (report.cached_by_tier[tier] ?? 0), 0);

function mini(report) {
  const shares = TIERS.map((tier) => `${TIER_TEXT[tier]} ${count(report.cached_by_tier[tier] ?? 0)}`).join(", ");
  return h("span", { class: "mini", role: "img", "aria-label": shares, title: shares }, TIERS.map((tier) =>
    h("i", { class: tier, style: { width: `${((report.cached_by_tier[tier] ?? 0) / Math.max(1, report.prompt_tokens)) * 100}%` } })));
}

const DOTS = { running: "good", waiting: "warn", error: "bad", timeout: "warn" };
const state = (name) => h("span", { class: `state ${name}` }, h("i", { class: `dot ${DOTS[name] ?? ""}`, "aria-hidden": "true" }), STATE_TEXT[name] ?? sentence(name));

function fill(row, report) {
  row.request = report;
  row.setAttribute("aria-selected", String(report.number === chosen));
  const told = JSON.stringify([report.state, report.prompt_tokens, report.cached_by_tier, report.completion_tokens, report.ttft_s]);
  const cells = row.children;
  if (row.told !== told) {
    row.told = told;
    cells[1].replaceChildren(state(report.state));
    cells[5].replaceChildren(mini(report));
  }
  const cached = cachedOf(report);
  const texts = {
    2: ago(report.submitted_ago_s), 3: count(report.prompt_tokens),
    4: report.prompt_tokens ? percent(cached / report.prompt_tokens, 0) : "–", 6: count(report.completion_tokens),
    7: seconds(report.queue_s), 8: seconds(report.load_s), 9: seconds(report.prefill_s), 10: seconds(report.ttft_s),
  };
  for (const [at, text] of Object.entries(texts)) say(cells[at], text);
}

export async function enter() {
  if (!can("requests")) {
    say($("#requests-note"), BARE);
    return;
  }
  try {
    const { requests } = await get("requests", { limit: 100 });
    say($("#requests-note"), requests.length ? "" : "None yet");
    keyed($("#requests").tBodies[0], requests, (report) => report.number, (report) => h("tr", {},
      COLUMNS.map((name, at) => h("td", { class: LEFT.has(name) ? "left" : "" },
        at === 0 ? h("button", { type: "button", class: "row-open", "aria-label": `Report of request ${report.number}` }, `${report.number}`) : null))), fill);
  } catch (error) {
    say($("#requests-note"), isMissing(error, "requests") ? BARE : error.message);
  }
}

function decided(decision, figure) {
  const part = `${count(decision.num_blocks)} of ${count(decision.of_blocks)}`;
  return [figure("blocks to load or use", part), figure("predicted", seconds(decision.ttft_s)), figure("took", seconds(decision.took_s))];
}

async function open(number) {
  const panel = $("#request-detail");
  try {
    const report = await get(`requests/${number}`, { text: session.text ? "true" : null });
    chosen = number;
    const figure = (name, value) => h("div", {}, h("b", {}, value), name);
    panel.replaceChildren(
      h("header", { class: "panel-head" }, h("h2", { id: "request-detail-title" }, `Request ${report.number}`), state(report.state)),
      report.error ? h("p", { class: "form-error" }, report.error) : "",
      h("div", { class: "figures" },
        figure("prompt tokens", count(report.prompt_tokens)), figure("cached", short(cachedOf(report))), figure("computed", short(report.prefilled_tokens)),
        figure("reply tokens", count(report.completion_tokens)), figure("queued", seconds(report.queue_s)), figure("loaded", seconds(report.load_s)),
        figure("prefill", seconds(report.prefill_s)), figure("to first token", seconds(report.ttft_s)), figure("owner", report.private ? "tenant" : "public"),
        ...(report.decision ? decided(report.decision, figure) : [])),
      ...(report.explanation ? explanationParts(report.explanation, "were served") : [h("p", { class: "empty" }, "Nothing is known yet of why its prompt was or was not served.")]));
    show(panel, true);
    panel.scrollIntoView({ block: "nearest" });
    panel.focus({ preventScroll: true });
    for (const row of $("#requests").tBodies[0].rows) row.setAttribute("aria-selected", String(row.request.number === number));
  } catch (error) {
    panel.replaceChildren(h("p", { class: "form-error" }, error.message));
    show(panel, true);
  }
}
