// Settings, those that can be changed first; and the namespaces.

import { get, patch, version } from "./api.js";
import { tell } from "./dialogs.js";
import { $, $$, h, say, show } from "./dom.js";
import { brief, bytes, exactBytes, NONE, parseBytes, plural, seconds } from "./format.js";
import { factsLine } from "./jobs.js";
import * as kept from "./kept.js";
import { BARE, can, isMissing, mayWrite, READ_ONLY } from "./session.js";
import { SETTING_TEXT } from "./words.js";

let settings = {};

export function start() {
  $("#settings-form").addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
  $("#settings-form").addEventListener("input", marks);
}

function written(name, value) {
  if (value === null || value === undefined) return "";
  return name.endsWith("_bytes") && typeof value === "number" ? exactBytes(value) : String(value);
}

function readable(name, value) {
  if (value === null || value === undefined) return "none";
  if (name.endsWith("_bytes") && typeof value === "number") return bytes(value);
  if (name.endsWith("_s") && typeof value === "number") return seconds(value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** The value in other words, where these are easier to read than what stands in the field. */
function now(name, value) {
  const seen = readable(name, value);
  const alike = value === null || seen.replace(/\.0+(?=\s)/, "") === written(name, value).replace(" ", "\u00a0");
  return alike || !/_(bytes|s)$/.test(name) ? "" : ` Now ${seen}.`;
}

/** What was typed as a value: [value, sentence]; the sentence says what is wrong. */
function parsed(name, text) {
  const before = settings[name];
  const trimmed = text.trim();
  if (trimmed === "") return [null, null];
  if (name.endsWith("_bytes")) {
    const size = parseBytes(trimmed);
    return size === null ? [null, "A size such as 512 MiB or 64 GiB."] : [size, null];
  }
  if (typeof before === "number" || name.endsWith("_s") || name.endsWith("_share")) {
    const number = Number(trimmed);
    return Number.isFinite(number) ? [number, null] : [null, "A number."];
  }
  if (typeof before === "boolean") return [trimmed === "true", null];
  return [trimmed, null];
}

function row(name, value) {
  const id = `setting-${name}`;
  return h("div", { class: "setting", data: { name } },
    h("label", { for: id }, name),
    h("div", { class: "control" },
      h("input", { id, name, value: written(name, value), disabled: !mayWrite(), spellcheck: "false", "aria-describedby": `${id}-text ${id}-error`, placeholder: "none" })),
    h("p", { id: `${id}-text` }, SETTING_TEXT[name] ?? "", now(name, value)),
    h("p", { class: "form-error", id: `${id}-error`, role: "alert", hidden: true }));
}

function problem(name, sentence) {
  const box = $$(".setting", $("#settings-form")).find((each) => each.dataset.name === name);
  if (!box) return false;
  const error = $(".form-error", box);
  say(error, sentence ?? "");
  show(error, Boolean(sentence));
  $("input", box).setAttribute("aria-invalid", String(Boolean(sentence)));
  return true;
}

/** Fields that say something else than what is set. */
function changes() {
  const made = {};
  let wrong = false;
  for (const input of $$("input", $("#settings-form"))) {
    const [value, sentence] = parsed(input.name, input.value);
    problem(input.name, sentence);
    wrong ||= Boolean(sentence);
    if (!sentence && value !== (settings[input.name] ?? null)) made[input.name] = value;
  }
  return { made, wrong };
}

function marks() {
  const { made, wrong } = changes();
  const button = $("#settings-apply");
  if (!button) return;
  const number = Object.keys(made).length;
  button.disabled = !number || wrong || !mayWrite();
  say(button, number ? `Apply ${plural(number, "change")}` : "Apply");
}

async function apply() {
  const { made } = changes();
  if (!Object.keys(made).length) return;
  try {
    build(await patch("config", made));
    tell("Settings changed.");
  } catch (error) {
    const named = error.errors?.map(({ path, message }) => problem(String(path).replace(/^[$./]+/, "").split(/[./[]/)[0], message)) ?? [];
    // A sentence that begins with a setting's name belongs there.
    const first = Object.keys(made).find((name) => error.message?.includes(name));
    if (!named.some(Boolean) && !(first && problem(first, error.message))) tell(error.message, true);
    $('[aria-invalid="true"]', $("#settings-form"))?.focus();
  }
}

function build(config) {
  settings = config.settings;
  const changeable = config.changeable.filter((name) => name in settings);
  $("#settings-form").replaceChildren(
    ...changeable.map((name) => row(name, settings[name])),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary", id: "settings-apply", disabled: true }, "Apply"),
      mayWrite() ? null : h("p", { class: "hint" }, READ_ONLY)));
  const fixed = Object.keys(settings).filter((name) => !changeable.includes(name)).sort();
  $("#settings-fixed").replaceChildren(...fixed.flatMap((name) => [h("dt", {}, name), h("dd", {}, readable(name, settings[name]))]));
}

function namespace(each) {
  return h("article", { class: "namespace" },
    h("h3", {}, h("span", { class: "mono", title: each.digest }, brief(each.digest, 16)), each.own ? " " : "", each.own ? h("span", { class: "chip" }, "this engine’s") : ""),
    h("span", {}, plural(each.blocks, "block")), h("span", {}, bytes(each.stored_bytes)),
    h("p", { class: "facts-line" }, each.facts ? factsLine(each.facts) : "What it holds is not known here."));
}

export async function enter() {
  const failed = (name, box) => (error) => box.replaceChildren(h("p", { class: "empty" }, isMissing(error, name) ? BARE : error.message));
  const wait = [kept.enter()];
  if (can("settings")) wait.push(get("config").then(build).catch(failed("settings", $("#settings-form"))));
  else $("#settings-form").replaceChildren(h("p", { class: "empty" }, BARE));
  if (can("namespaces")) {
    wait.push(get("namespaces").then(({ namespaces }) => {
      $("#namespaces").replaceChildren(...(namespaces.length ? namespaces.map(namespace) : [h("p", { class: "empty" }, NONE)]));
    }).catch(failed("namespaces", $("#namespaces"))));
  } else $("#namespaces").replaceChildren(h("p", { class: "empty" }, BARE));
  wait.push(version().then((told) => say($("#about"), `${told.name} ${told.version} · Python ${told.python}`)).catch(() => {}));
  await Promise.all(wait);
}
