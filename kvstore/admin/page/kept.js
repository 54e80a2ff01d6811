// What is kept because somebody asked: named caches, and what tenants have and may have.

import { get } from "./api.js";
import { $, h } from "./dom.js";
import { ago, bytes, count, NONE, seconds } from "./format.js";
import { BARE, can, isMissing, mayWrite } from "./session.js";

const TIERS = ["device", "host", "disk"];
const NO_NAMES = "Tenants are shown to the full token only.";

function table(heads, rows) {
  return h("table", { class: "data" },
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, ...rows.map((cells) => h("tr", {}, ...cells.map((cell) => h("td", {}, cell))))));
}

const empty = (sentence) => h("p", { class: "empty" }, sentence);

/** Seconds until then, of seconds since the epoch. */
const left = (epochS) => (epochS === null ? "until deleted" : seconds(Math.max(0, epochS - Date.now() / 1000)));

function cache(each) {
  const tiers = TIERS.filter((tier) => each.tiers[tier]).map((tier) => `${count(each.tiers[tier])} ${tier}`).join(", ");
  const lost = !each.held ? "held no more" : each.lost_blocks ? `${count(each.lost_blocks)} lost` : "whole";
  return [each.name, count(each.tokens), tiers || NONE, bytes(each.bytes), lost, ago(Date.now() / 1000 - each.created_s), left(each.expires_s)];
}

function tenant(each) {
  const name = each.tenant === "" ? "no tenant’s" : each.tenant ?? `${each.owner.slice(0, 12)}…`;
  const quota = Object.entries(each.quota ?? {}).map(([part, size]) => `${part} ${TIERS.includes(part) && Number.isInteger(size) ? bytes(size) : size}`);
  const of = (tier) => (each.part_bytes?.[tier] ? ` of ${bytes(each.part_bytes[tier])}` : "");
  return [name, ...TIERS.map((tier) => bytes(each.used_bytes[tier]) + of(tier)), quota.join(", ") || NONE, count(each.evicted_copies)];
}

async function fill(box, name, path, made) {
  if (!can(name)) return box.replaceChildren(empty(BARE));
  try {
    box.replaceChildren(made(await get(path)));
  } catch (error) {
    box.replaceChildren(empty(isMissing(error, name) ? BARE : error.message));
  }
}

export async function enter() {
  const caches = fill($("#kept-caches"), "caches", "caches", ({ caches }) => (caches.length
    ? table(["Name", "Tokens", "Blocks in", "On disk", "State", "Made", "Ends in"], caches.map(cache))
    : empty("There are none.")));
  if (!mayWrite()) $("#kept-tenants").replaceChildren(empty(NO_NAMES));
  else {
    await fill($("#kept-tenants"), "tenants", "tenants", ({ tenants }) => (tenants.length
      ? table(["Tenant", "Device", "Host", "Disk", "Quota", "Evicted"], tenants.map(tenant))
      : empty("No tenant has asked for anything.")));
  }
  await caches;
}
