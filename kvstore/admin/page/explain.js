// The Explain view: a prompt in three shapes, why it misses, and where live traffic leaves the cache.

import { get, post } from "./api.js";
import { announce, tell } from "./dialogs.js";
import { sides } from "./difference.js";
import { $, $$, h, say, show } from "./dom.js";
import { seconds, short } from "./format.js";
import { explanationParts } from "./explanation.js";
import { BARE, can, isMissing, mayWrite, session } from "./session.js";
import { kindLabel } from "./words.js";

const SHAPES = {
  text: ["Prompt", "The text as the engine gets it, without a chat template."],
  messages: ["Chat messages", 'JSON: a list such as [{"role": "system", "content": "…"}, {"role": "user", "content": "…"}]. The model’s chat template is applied.'],
  token_ids: ["Token ids", "Numbers, separated by spaces or commas."],
};
const given = { text: "", messages: "", token_ids: "" };
let shape = "text";

export function start() {
  for (const button of $$("#explain-shape button")) button.addEventListener("click", () => setShape(button.dataset.shape));
  $("#explain-form").addEventListener("submit", (event) => {
    event.preventDefault();
    explain();
  });
  $("#prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("#explain-form").requestSubmit();
  });
  $("#explain-warm").addEventListener("click", warm);
  setShape("text");
}

function setShape(name) {
  given[shape] = $("#prompt").value;
  shape = name;
  $("#prompt").value = given[name];
  say($("#prompt-label"), SHAPES[name][0]);
  say($("#prompt-hint"), SHAPES[name][1]);
  problem(null);
  for (const button of $$("#explain-shape button")) button.setAttribute("aria-pressed", String(button.dataset.shape === name));
}

function problem(sentence) {
  say($("#prompt-error"), sentence ?? "");
  show($("#prompt-error"), Boolean(sentence));
  $("#prompt").setAttribute("aria-invalid", String(Boolean(sentence)));
}

/** The body of the request; null, and a sentence at the field, if the prompt is not what it should be. */
function body() {
  const raw = $("#prompt").value;
  const fields = $("#explain-form").elements;
  const made = {};
  problem(null);
  if (!raw.trim()) return problem("Give a prompt.");
  if (shape === "messages") {
    try {
      made.messages = JSON.parse(raw);
    } catch (error) {
      return problem(`This is not JSON: ${error.message}.`);
    }
    if (!Array.isArray(made.messages)) return problem("Messages are a list, in square brackets.");
  } else if (shape === "token_ids") {
    const ids = raw.replace(/[[\],]/g, " ").trim().split(/\s+/);
    const wrong = ids.find((id) => !/^\d+$/.test(id));
    if (wrong !== undefined) return problem(`“${wrong}” is not a token id.`);
    made.token_ids = ids.map(Number);
  } else made.text = raw;
  if (fields.tenant.value) made.tenant = fields.tenant.value;
  if (fields.cache_salt.value) made.cache_salt = fields.cache_salt.value;
  if (fields.salt_offset.value) made.salt_offset = Number(fields.salt_offset.value);
  return made;
}

async function explain() {
  const asked = body();
  if (!asked) return $("#prompt").focus();
  const result = $("#explain-result");
  try {
    const told = await post("explain", asked);
    result.replaceChildren(h("header", { class: "panel-head" }, h("h2", { id: "explain-result-title" }, "Answer")), ...explanationParts(told));
    show(result, true);
    result.scrollIntoView({ block: "nearest" });
    result.focus({ preventScroll: true });
    announce(result.querySelector(".verdict").textContent);
  } catch (error) {
    if (isMissing(error, "explain")) enter();
    else problem(error.message);
  }
}

async function warm() {
  const asked = body();
  if (!asked) return $("#prompt").focus();
  try {
    const job = await post("warm", asked);
    tell(`The prompt is being computed: job ${job.id}. See Jobs.`);
  } catch (error) {
    problem(error.message);
  }
}

function divergence(each) {
  return h("article", { class: "divergence" },
    h("div", {}, h("h3", {}, kindLabel(each.kind), h("small", {}, `from token ${short(each.at_token)} on`)), h("p", {}, each.sentence)),
    h("div", { class: "big" }, h("b", {}, seconds(each.lost_s)), h("small", {}, "of prefill lost")),
    h("div", { class: "big" }, h("b", {}, short(each.lost_tokens)), h("small", {}, "tokens computed")),
    h("div", { class: "big" }, h("b", {}, short(each.requests)), h("small", {}, each.requests === 1 ? "request" : "requests")),
    each.example ? h("details", { class: "fold" }, h("summary", {}, "An example"), sides(each.example)) : null);
}

export async function enter() {
  const able = can("explain");
  for (const field of $("#explain-form").elements) field.disabled = !able;
  $("#explain-warm").disabled = !able || !can("warm") || !mayWrite();
  if (!able) say($("#prompt-hint"), BARE);
  if (!can("advice")) return show($("#advice-panel"), false);
  try {
    const { advice } = await get("advice", { text: session.text ? "true" : null });
    $("#advice").replaceChildren(...(advice.length ? advice.map(divergence)
      : [h("p", { class: "empty" }, "Nothing that could be mended has kept prompts from being found so far.")]));
  } catch (error) {
    if (isMissing(error, "advice")) show($("#advice-panel"), false);
    else $("#advice").replaceChildren(h("p", { class: "form-error" }, error.message));
  }
}
