// An Explanation as a bar of parts, a list of them, and the difference.

import { differencePart } from "./difference.js";
import { $$, h } from "./dom.js";
import { ago, count, percent, plural } from "./format.js";
import { reasonLabel, reasonText, TIER_TEXT } from "./words.js";

const length = (part) => part.end_token - part.start_token;

function verdict(told, served) {
  const cached = told.parts.filter((part) => part.reason === null).reduce((sum, part) => sum + length(part), 0);
  const share = cached / Math.max(1, told.prompt_tokens);
  if (!cached) return h("p", { class: "verdict" }, h("b", {}, "Nothing"), ` of ${plural(told.prompt_tokens, "token")} ${served} from cache.`);
  return h("p", { class: "verdict" }, h("b", {}, count(cached)), ` of ${plural(told.prompt_tokens, "token")} `,
    h("span", { class: "soft" }, `(${percent(share)})`), ` ${served} from cache.`);
}

const name = (part) => (part.reason === null ? TIER_TEXT[part.tier] : reasonLabel(part.reason));
const look = (part) => (part.reason === null ? part.tier : "hatch");

function why(part) {
  if (part.reason === null) return part.detail ?? "";
  const had = part.tier ? `${TIER_TEXT[part.tier]} had it last` : "";
  const when = part.ago_s === null ? "" : `it went ${ago(part.ago_s)}`;
  const history = [had, when].filter(Boolean).join(", ");
  return [reasonText(part.reason), history && history + ".", part.detail].filter(Boolean).join(" ");
}

/** The whole of it, as elements. */
export function explanationParts(told, served = "would be served") {
  const items = told.parts.map((part) => h("li", {},
    h("i", { class: `swatch ${look(part)}`, "aria-hidden": "true" }),
    h("span", {}, name(part)),
    h("span", { class: "num span" }, `${count(part.start_token)}–${count(part.end_token)}`),
    h("span", { class: "num" }, count(length(part))),
    h("span", { class: "soft why" }, why(part))));
  const bar = h("div", { class: "parts", role: "group", "aria-label": "Parts of the prompt" }, told.parts.map((part, at) => {
    const label = `${name(part)}, tokens ${count(part.start_token)} to ${count(part.end_token)}`;
    const share = length(part) / Math.max(1, told.prompt_tokens);
    return h("button", {
      type: "button", class: look(part), title: label, "aria-label": label, "aria-pressed": "false",
      style: { flex: `${length(part)} 1 0` },
      on: { click: (event) => choose(event.currentTarget, items[at], bar, items) },
    }, share > 0.09 ? h("span", {}, name(part)) : null);
  }));
  return [
    verdict(told, served), bar,
    h("div", { class: "scale", "aria-hidden": "true" }, h("span", {}, "0"), h("span", {}, plural(told.prompt_tokens, "token"))),
    h("ol", { class: "part-list" }, items),
    told.difference ? differencePart(told.difference) : null,
    told.notes?.length ? h("ul", { class: "notes" }, told.notes.map((note) => h("li", {}, note))) : null,
  ].filter(Boolean);
}

function choose(button, item, bar, items) {
  const already = button.getAttribute("aria-pressed") === "true";
  for (const other of $$("button", bar)) other.setAttribute("aria-pressed", String(other === button && !already));
  for (const other of items) other.classList.toggle("chosen", other === item && !already);
}
