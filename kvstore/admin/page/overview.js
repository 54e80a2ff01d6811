// Tiers with their fill and flows, hit rates over time, misses by reason, transfers.

import { HistoryChart, merged, sparkline } from "./chart.js";
import { $, $$, h, keyed, say, show, svg } from "./dom.js";
import { bytes, clock, count, percent, plural, rate, short } from "./format.js";
import { reasonLabel, reasonText, TIERS, TIER_TEXT, TRANSFERS } from "./words.js";

const FLOWS = [
  [["demote", "down"], ["promote", "up"]],
  [["write", "down"], ["read", "up"]],
];
const SPARK_POINTS = 60;

let chart;
let rangeChosen = false;
const summary = {};
const tiers = {};
const flows = {};

function figure(name, label) {
  const value = h("dd", {}, "–");
  const more = h("dd", { class: "more" });
  summary[name] = { value, more };
  return h("div", { class: "live" }, h("dt", {}, label), value, more);
}

function tierPanel(name) {
  const part = (kind) => h("i", { class: kind });
  const made = {
    dot: h("i", { class: "dot", "aria-hidden": "true" }),
    state: h("span", {}, "–"),
    reason: h("p", { class: "tier-reason", hidden: true }),
    now: h("strong", {}, "–"),
    windows: h("small", {}, "\u00a0"),
    spark: svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }),
    parts: { live: part("live-part"), other: part("other-part"), flight: part("flight-part") },
    used: h("span", {}, "–"),
    share: h("span", { class: "soft" }, "–"),
    live: h("span", {}, "–"), other: h("span", {}, "–"), flight: h("span", {}, "–"),
    facts: h("dl", { class: "facts" }),
  };
  made.fill = h("div", { class: "fill", role: "img" }, Object.values(made.parts));
  made.panel = h("article", { class: `panel tier ${name}`, "aria-label": TIER_TEXT[name] },
    h("div", { class: "tier-head" }, h("h3", {}, TIER_TEXT[name]), h("span", { class: "tier-state" }, made.dot, made.state)),
    h("div", { class: "tier-hit live" },
      h("div", {}, made.now, h("small", {}, "of prompt tokens, 1 min"), made.windows), made.spark),
    made.reason,
    made.fill,
    h("div", { class: "fill-text live" }, made.used, made.share),
    h("div", { class: "keys live" },
      h("span", {}, h("i", { class: "live-part" }), made.live),
      h("span", {}, h("i", { class: "other-part" }), made.other),
      h("span", {}, h("i", { class: "flight-part" }), made.flight)),
    made.facts);
  tiers[name] = made;
  return made.panel;
}

function flow([name, direction]) {
  const value = h("b", {}, "–");
  const box = h("div", { class: `flow live ${direction === "up" ? "up" : ""}`, data: { flow: name } },
    h("span", {}, TRANSFERS[name]), h("div", { class: "pipe", "aria-hidden": "true" }), value);
  flows[name] = { box, value };
  return box;
}

export function start() {
  $("#summary").append(
    figure("rate", "Hit rate, 1 min"), figure("asked", "Asked, 1 min"), figure("served", "Served from cache, 1 min"),
    figure("queue", "Requests"), figure("gpu", "GPU"));
  const row = $("#tiers");
  TIERS.forEach((name, at) => {
    row.append(tierPanel(name));
    if (FLOWS[at]) row.append(h("div", { class: "flows" }, FLOWS[at].map(flow)));
  });
  // All rows are there from the start, with dashes: what comes later moves nothing.
  for (const name of TIERS) fillTier(tiers[name], null, { gpu: null, disk: null, transfers: [] }, name);
  transfers(Object.keys(TRANSFERS).map((name) => ({ name })));
  chart = new HistoryChart($("#history"));
  for (const button of $$("#history-range button")) {
    button.addEventListener("click", () => {
      rangeChosen = true;
      range(Number(button.dataset.minutes));
      chart.draw();
    });
  }
  $("#history-fold").addEventListener("toggle", () => table(chart.points));
  $("#misses").append(h("p", { class: "empty" }, "Nothing was computed yet."));
}

function range(minutes) {
  chart.minutes = minutes;
  for (const button of $$("#history-range button")) button.setAttribute("aria-pressed", String(Number(button.dataset.minutes) === minutes));
}

/** Until the user chooses: the shortest range that shows all there is. */
function fitRange(history) {
  if (rangeChosen || !history.length) return;
  const covered = (history.at(-1)[0] - history[0][0]) / 60;
  range([5, 15].find((minutes) => covered <= minutes) ?? 60);
}

/** Show what /admin/v1/tiers says. */
export function update(told) {
  summarise(told);
  const shares = merged(told.history, SPARK_POINTS);
  TIERS.forEach((name, at) => {
    const tier = told.tiers.find((each) => each.name === name);
    fillTier(tiers[name], tier, told, name);
    sparkline(tiers[name].spark, shares.map((point) => point[at + 1]));
  });
  for (const [name, { box, value }] of Object.entries(flows)) {
    const speed = told.transfers.find((each) => each.name === name)?.bytes_per_s?.["60"] ?? null;
    say(value, rate(speed));
    box.classList.toggle("moving", speed > 0);
    // From 1.6 s for kilobytes to 0.3 s for gigabytes a second: a difference that one sees, not a measure.
    if (speed > 0) box.style.setProperty("--pace", `${Math.max(0.3, 2.2 - 0.2 * Math.log10(speed)).toFixed(2)}s`);
  }
  fitRange(told.history);
  chart.set(told.history);
  if ($("#history-fold").open) table(told.history);
  misses(told.missed_tokens);
  transfers(told.transfers);
}

function summarise(told) {
  const minute = told.windows.find((each) => each.seconds === 60) ?? told.windows[0];
  const longer = told.windows.filter((each) => each !== minute);
  const served = minute ? TIERS.reduce((sum, tier) => sum + (minute.cached_tokens_by_tier[tier] ?? 0), 0) : null;
  say(summary.rate.value, percent(minute?.hit_rate));
  say(summary.rate.more, longer.map((each) => `${each.seconds / 60 < 60 ? each.seconds / 60 + " min" : each.seconds / 3600 + " h"} ${percent(each.hit_rate)}`).join(" · "));
  say(summary.asked.value, short(minute?.prompt_tokens));
  say(summary.asked.more, "tokens of prompts");
  say(summary.served.value, short(served));
  say(summary.served.more, "tokens not computed");
  say(summary.queue.value, told.queue ? `${count(told.queue.running)} running` : "–");
  say(summary.queue.more, told.queue ? `${count(told.queue.waiting)} waiting` : "no engine");
  const gpu = told.gpu;
  say(summary.gpu.value, gpu ? percent(gpu.utilization_percent === null ? null : gpu.utilization_percent / 100, 0) : "None");
  say(summary.gpu.more, gpu ? `busy, ${gpu.name}` : "not seen by this process");
}

function stateOf(tier) {
  if (!tier) return ["", "–"];
  if (!tier.on) return ["", "Off"];
  if (!tier.ready) return ["warn", "Not ready"];
  return ["good", "Ready"];
}

function fillTier(made, tier, told, name) {
  const [dot, state] = stateOf(tier);
  made.dot.className = `dot ${dot}`;
  say(made.state, state);
  say(made.reason, tier?.reason ?? "");
  show(made.reason, Boolean(tier?.reason));
  say(made.now, percent(tier?.hit_rate?.["60"]));
  say(made.windows, tier ? `5 min ${percent(tier.hit_rate?.["300"])} · 1 h ${percent(tier.hit_rate?.["3600"])}` : "\u00a0");
  const capacity = tier?.capacity_bytes ?? 0;
  const used = tier?.used_bytes ?? 0;
  const flight = tier?.in_flight_bytes ?? 0;
  const live = tier?.live_bytes ?? 0;
  const other = Math.max(0, used - live - flight);
  for (const [kind, size] of Object.entries({ live, other, flight })) {
    made.parts[kind].style.width = capacity ? `${Math.min(100, (size / capacity) * 100)}%` : "0";
  }
  made.fill.setAttribute("aria-label", capacity ? `${percent(used / capacity, 0)} used` : "no capacity");
  say(made.used, !tier?.on ? "–" : `${bytes(tier?.used_bytes)} of ${bytes(tier?.capacity_bytes)}`);
  say(made.share, capacity ? percent(used / capacity, 0) : "");
  say(made.live, `Cached ${bytes(tier?.live_bytes)}`);
  say(made.other, `${name === "disk" ? "Overhead" : "Requests’ own"} ${bytes(tier ? other : null)}`);
  say(made.flight, `In flight ${bytes(tier?.in_flight_bytes)}`);
  const rows = [["Blocks", tier ? `${count(tier.used_blocks)}${tier.capacity_blocks ? ` of ${count(tier.capacity_blocks)}` : ""}` : "–"],
    ["Evicted", tier ? plural(tier.evicted_blocks, "block") : "–"], ["Dropped for good", tier ? plural(tier.dropped_blocks, "block") : "–"]];
  rows.push(...MORE[name](told));
  keyed(made.facts, rows.flatMap(([label, value]) => [["dt", label], ["dd", label, value]]), ([tag, label]) => tag + label,
    ([tag, label]) => h(tag, {}, tag === "dt" ? label : ""), (element, [tag, , value]) => tag === "dd" && say(element, value));
}

const transfer = (told, name) => told.transfers.find((each) => each.name === name);

/** What only one tier has. */
const MORE = { device: deviceRows, host: hostRows, disk: diskRows };

function deviceRows({ gpu }) {
  if (!gpu) return [];
  const watts = (value) => (value === null || value === undefined ? "–" : `${Math.round(value)}`);
  return [
    ["PCIe in, out", `${rate(gpu.pcie?.read_bytes_per_s)}, ${rate(gpu.pcie?.written_bytes_per_s)}`],
    ["Card’s memory", `${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_total_bytes)}`],
    ["Power", `${watts(gpu.power_w)} of ${watts(gpu.power_limit_w)}\u00a0W`],
    ["Temperature", gpu.temperature_c === null ? "–" : `${gpu.temperature_c}\u00a0°C`],
  ];
}

function hostRows(told) {
  const failed = ["demote", "promote"].reduce((sum, name) => sum + (transfer(told, name)?.failed_blocks ?? 0), 0);
  return [
    ["Swapped out, back in", `${short(transfer(told, "swap_out")?.blocks)}, ${short(transfer(told, "swap_in")?.blocks)}`],
    ["Copies that failed", told.transfers.length ? plural(failed, "block") : "–"],
    ["Being written", told.transfers.length ? plural(transfer(told, "write")?.in_flight_blocks ?? 0, "block") : "–"],
  ];
}

function diskRows({ disk }) {
  const damaged = disk ? Object.values(disk.damaged).reduce((sum, each) => sum + each, 0) : null;
  const fixed = (value, unit = "") => (value === null || value === undefined ? "–" : value.toFixed(2) + unit);
  return [
    ["Compression", fixed(disk?.compression_ratio, "\u00a0:\u00a01")],
    ["Written per byte hit", fixed(disk?.written_by_read)],
    ["Other namespaces", bytes(disk?.other_namespaces_bytes)],
    ["Damaged records", count(damaged)],
  ];
}

function table(points) {
  if (!$("#history-fold").open) return;
  const rows = merged(points, 60);
  $("#history-table").replaceChildren(
    h("caption", { class: "sr" }, "Share of prompt tokens served by each tier, a row a minute"),
    h("thead", {}, h("tr", {}, ["Until", ...TIERS.map((tier) => TIER_TEXT[tier]), "Together", "Tokens asked"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.toReversed().map(([at, ...rest]) => {
      const shares = rest.slice(0, 3);
      const together = shares[0] === null ? null : shares.reduce((sum, share) => sum + share, 0);
      return h("tr", {}, h("th", { scope: "row" }, clock(at)), [...shares, together].map((share) => h("td", {}, percent(share))), h("td", {}, count(rest[3])));
    })));
}

function misses(tokens) {
  const rows = Object.entries(tokens ?? {}).filter(([, number]) => number > 0).sort((one, other) => other[1] - one[1]);
  const total = rows.reduce((sum, [, number]) => sum + number, 0);
  say($("#misses-total"), total ? `${short(total)} tokens since the start` : "");
  if (!rows.length) return;
  $("#misses .empty")?.remove();
  keyed($("#misses"), rows, ([reason]) => reason, ([reason]) => {
    const damage = reason.startsWith("damaged") || reason.endsWith("failed") || reason === "wrong_identity";
    return h("div", { class: "miss live" },
      h("div", {}, h("span", { class: "name" }, reasonLabel(reason)), h("p", { class: "why" }, reasonText(reason))),
      h("div", { class: `meter ${damage ? "damage" : ""}`, "aria-hidden": "true" }, h("i")),
      h("span", { class: "num tokens" }), h("span", { class: "num share" }));
  }, (element, [, number]) => {
    $(".meter i", element).style.width = `${(number / total) * 100}%`;
    say($(".tokens", element), `${short(number)}`);
    say($(".share", element), percent(number / total));
  });
}

const COLUMNS = ["Transfer", "From → to", "Now", "Busy", "Blocks", "Bytes", "Failed blocks", "Blocks in flight"];

function transfers(rows) {
  const root = $("#transfers");
  if (!root.tHead) {
    root.append(h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col" }, name)))), h("tbody"));
  }
  keyed(root.tBodies[0], rows, (row) => row.name, (row) => h("tr", {}, h("th", { scope: "row" }, TRANSFERS[row.name] ?? row.name),
    h("td", {}, "–"), COLUMNS.slice(2).map(() => h("td", { class: "live" }))),
  (element, row) => {
    const values = [row.from ? `${row.from} → ${row.to}` : "–", rate(row.bytes_per_s?.["60"]), percent(row.busy_share?.["60"]),
      short(row.blocks), bytes(row.bytes), count(row.failed_blocks), count(row.in_flight_blocks)];
    values.forEach((value, at) => say(element.children[at + 1], value));
  });
}
