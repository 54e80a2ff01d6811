// The Prefixes view: tree, list, and the details of one run with what can be done to it.

import { get, post, remove } from "./api.js";
import { confirm, tell } from "./dialogs.js";
import { $, h, say, show } from "./dom.js";
import { ago, brief, count, percent, plural, seconds } from "./format.js";
import { Icicle, rootLabel, titleOf } from "./icicle.js";
import { RunList } from "./runlist.js";
import { can, mayWrite, READ_ONLY, session } from "./session.js";
import { TIERS, TIER_TEXT } from "./words.js";

let icicle;
let list;
let loadedOnce = false;
let contains = null; // What the list is searched for.
const filter = () => $("#list-filter").elements;
const withText = () => (session.text ? "true" : null);

/** What the filter asks for. Each run is met by itself, so that a filter looks at all depths. */
function query() {
  const fields = filter();
  const narrowed = contains || fields.tier.value || fields.private.value || Number(fields.min_hits.value) > 0 || Number(fields.min_blocks.value) > 0;
  return {
    order: fields.order.value,
    tier: fields.tier.value,
    private: fields.private.value,
    min_hits: fields.min_hits.value,
    min_blocks: fields.min_blocks.value,
    contains,
    flat: fields.flat.checked || narrowed ? "true" : null,
    text: withText(),
  };
}

export function start() {
  icicle = new Icicle($("#icicle"), {
    load: (key, limit) => get("prefixes", { under: key, order: "size", limit, text: withText() }),
    pick: (run) => details(run.key),
    zoomed: crumbs,
    failed,
  });
  list = new RunList($("#runs"), {
    load: (place) => get("prefixes", { ...query(), ...place }),
    pick: (run, jump) => details(run.key, jump, true),
    loaded: (page) => say($("#list-note"), `${plural(page.total, "run")}, as of ${ago(page.taken_ago_s)}`),
    failed,
  });
  const form = $("#list-filter");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search(form.elements.key.value.trim());
  });
  form.addEventListener("change", (event) => event.target.name !== "key" && reload());
  $("#list-reset").addEventListener("click", () => {
    form.reset();
    contains = null;
    reload();
  });
  $("#list-refresh").addEventListener("click", refresh);
  crumbs([]);
}

export async function enter() {
  if (!loadedOnce) await refresh();
}

/** Ask for tree and list again. */
export async function refresh() {
  if (!can("prefixes")) return;
  loadedOnce = true;
  await Promise.all([icicle.refresh().then(() => crumbs(icicle.path)), reload()]);
}

function failed(error) {
  say($("#list-error"), error.message);
  show($("#list-error"), true);
}

function reload() {
  show($("#list-error"), false);
  const asked = query();
  const narrowed = asked.flat && !filter().flat.checked;
  filter().flat.disabled = Boolean(narrowed);
  show($("#list-reset"), Boolean(asked.flat));
  return list.reload(Boolean(asked.flat));
}

/** Go to the run of a key, or list the runs that begin with something that holds a text. */
async function search(wanted) {
  show($("#list-error"), false);
  const isKey = /^[0-9a-f]{64}$/i.test(wanted);
  contains = isKey ? null : wanted || null;
  if (isKey) await details(wanted.toLowerCase(), true);
  else if (contains && !session.text) failed(new Error("Text may not be shown here, so it cannot be searched either: give a key, 64 hexadecimal digits."));
  else await reload();
}

function crumbs(path) {
  const step = (label, to, last) => h("button", {
    type: "button", class: "quiet", "aria-current": last ? "true" : null, on: { click: () => icicle.zoom(to) },
  }, label);
  const parts = [step(rootLabel(icicle?.pages.get("")?.total), [], path.length === 0)];
  path.forEach((run, at) => {
    const label = run.text ? titleOf(run).slice(0, 34) : brief(run.key);
    parts.push(h("span", { class: "sep", "aria-hidden": "true" }, "›"), step(label, path.slice(0, at + 1), at === path.length - 1));
  });
  const focused = $("#crumbs").contains(document.activeElement);
  $("#crumbs").replaceChildren(...parts);
  if (focused) parts.at(-1).focus({ preventScroll: true });
}

/** Show one run. `jump` moves the focus to it; `look` scrolls there where it would be out of sight. */
async function details(key, jump = false, look = jump) {
  let told;
  try {
    told = await get(`prefixes/${encodeURIComponent(key)}`, { text: withText() });
  } catch (error) {
    failed(error.status === 404 ? new Error(`No run holds a block with the key ${key}.`) : error);
    return;
  }
  const { run } = told;
  icicle.select(run.key);
  list.select(run.key);
  $("#detail-body").replaceChildren(...detailParts(told));
  const beside = getComputedStyle($("#detail")).position === "sticky"; // As in style.css: else it is below the list.
  if (look && !beside) $("#detail").scrollIntoView({ block: "nearest" });
  if (jump) $("#detail").focus({ preventScroll: true });
}

function detailParts({ run, above, token_ids: ids }) {
  const facts = [
    ["Tokens", `${count(run.start_token)}–${count(run.end_token)}`],
    ["Blocks", count(run.blocks)],
    ["Blocks that follow", count(run.blocks_below)],
    ["Runs that follow", count(run.children)],
    ["Hits", count(run.hits)],
    ["Last used", ago(run.last_used_ago_s)],
    ["Kept unused for", run.ttl_s === null ? "no end" : seconds(run.ttl_s)],
    ["Requests that hold it", count(run.leases)],
    ["Owner", run.private ? "a tenant" : "everybody"],
  ];
  return [
    h("p", { class: "key" }, run.key),
    run.text ? h("div", { class: "prose", tabindex: "0", "aria-label": "Beginning of its text" }, run.text) : null,
    h("div", { class: "bars" }, TIERS.map((tier) => whereBar(run, tier))),
    h("dl", { class: "facts" }, facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    above.length ? pathPart(above) : null,
    ids?.length ? h("details", { class: "fold" }, h("summary", {}, `${plural(ids.length, "token id")}`), h("div", { class: "prose", tabindex: "0" }, ids.join(" "))) : null,
    actions(run),
  ].filter(Boolean);
}

function whereBar(run, tier) {
  const held = run.blocks_by_tier[tier];
  const share = held / Math.max(1, run.blocks);
  return h("div", {}, h("span", {}, TIER_TEXT[tier].split(" ")[0]),
    h("div", { class: "track", "aria-hidden": "true" }, h("i", { class: tier, style: { width: `${share * 100}%` } })),
    h("span", {}, `${count(held)} · ${percent(share, 0)}`));
}

function pathPart(above) {
  return h("details", { class: "fold path" }, h("summary", {}, `Behind ${plural(above.length, "run")}`),
    h("ol", {}, above.map((run) => h("li", {},
      h("button", { type: "button", class: "quiet", on: { click: () => details(run.key) } }, titleOf(run)),
      h("span", { class: "soft" }, plural(run.blocks, "block"))))));
}

function actions(run) {
  const off = mayWrite() ? null : READ_ONLY;
  const button = (label, kind, act) => h("button", { type: "button", class: kind, disabled: Boolean(off), title: off, on: { click: act } }, label);
  return h("div", { class: "buttons" },
    button("Demote to host", "", () => demote(run, "host")),
    button("Demote to disk", "", () => demote(run, "disk")),
    button("Remove", "danger", () => removeRun(run)),
    off ? h("p", { class: "hint" }, off) : null);
}

const size = (run) => plural(run.blocks + run.blocks_below, "block");

async function demote(run, to) {
  try {
    await post("demote", { to, key: run.key });
    tell(`Moving what is idle of ${size(run)} to ${to === "host" ? "host memory" : "disk"}. See Jobs.`);
  } catch (error) {
    tell(error.message, true);
  }
}

async function removeRun(run) {
  const sure = await confirm({
    title: "Remove this run and all that follow it?",
    text: `${size(run)} go from every tier. The next prompts that begin like this are computed again. Blocks that requests use stay.`,
    yes: "Remove",
  });
  if (!sure) return;
  try {
    const removed = await remove(`prefixes/${encodeURIComponent(run.key)}`);
    const kept = removed.in_use_blocks ? `, ${plural(removed.in_use_blocks, "block")} in use stayed` : "";
    tell(`${plural(removed.blocks, "block")} removed${kept}.`);
    $("#detail-body").replaceChildren(h("p", { class: "empty" }, "Removed."));
    icicle.path = [];
    await refresh();
  } catch (error) {
    tell(error.message, true);
  }
}
