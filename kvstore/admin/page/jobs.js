// What can be set off, what became of it, and what happens meanwhile.

import { get, listen, post } from "./api.js";
import { confirm, tell } from "./dialogs.js";
import { $, h, keyed, say } from "./dom.js";
import { ago, brief, bytes, clock, count, plural, seconds } from "./format.js";
import { can, isMissing, mayWrite, READ_ONLY } from "./session.js";
import { JOB_TEXT, reasonLabel, sentence, STATE_TEXT } from "./words.js";

const KEPT_EVENTS = 500;
const AGAIN_MS = 2000;

const ACTIONS = [
  { needs: "flush", label: "Flush", text: "Write to disk what is not there yet.", run: () => post("flush") },
  { needs: "verify", label: "Verify", text: "Read every record on disk and check it. What is damaged is put aside.", run: () => post("verify") },
  {
    needs: "demote", label: "Demote to host", text: "Move all that is idle from the device to host memory.",
    run: () => post("demote", { to: "host" }),
  },
  {
    needs: "demote", label: "Demote to disk", text: "Move all that is idle down to disk.",
    run: () => post("demote", { to: "disk" }),
  },
  {
    needs: "drain", label: "Drain", text: "Take no new requests, and wait until those there are have ended.",
    sure: { title: "Take no more requests?", text: "New requests are refused until somebody resumes.", yes: "Drain" },
    run: () => post("drain"),
  },
  { needs: "resume", label: "Resume", text: "Take requests again.", run: () => post("resume") },
];

let events = [];
let last = 0;
let paused = false;
let stop = null;
const kinds = new Map();

export function start() {
  $("#actions").append(...ACTIONS.map((action) => {
    action.button = h("button", { type: "button", on: { click: () => act(action) } }, action.label);
    return h("li", {}, action.button, h("p", {}, action.text));
  }));
  $("#events-pause").addEventListener("click", (event) => {
    paused = !paused;
    event.currentTarget.setAttribute("aria-pressed", String(paused));
    say(event.currentTarget, paused ? "Go on" : "Pause");
    draw();
  });
  $("#events-kind").addEventListener("change", draw);
}

async function act(action) {
  if (action.sure && !(await confirm(action.sure))) return;
  try {
    const job = await action.run();
    tell(job?.id ? `${action.label}: job ${job.id} has begun.` : `${action.label}: done.`);
  } catch (error) {
    tell(isMissing(error, action.needs) ? `${action.label} needs an engine, and this cache runs without one.` : error.message, true);
  }
  enter().catch((error) => tell(error.message, true));
}

const FACTS = { seconds: "took", ttft_s: "first token after" };

/** Facts of an event or a result, as "name value · name value". */
export function factsLine(facts) {
  return Object.entries(facts ?? {}).map(([name, value]) => {
    const plain = name.replace(/_(bytes|s)$/, "").replaceAll("_", " ");
    if (value !== null && typeof value === "object") {
      const inner = factsLine(value);
      return inner ? `${plain}: ${inner}` : `${plain}: none`;
    }
    if (name === "bytes" || name.endsWith("_bytes")) return `${name === "bytes" ? "" : plain + " "}${bytes(value)}`;
    if (name === "seconds" || name.endsWith("_s")) return `${FACTS[name] ?? plain} ${seconds(value)}`;
    if (/(^|_)(blocks|tokens|records)$/.test(name)) return plural(value, plain.replace(/s$/, ""), plain);
    if (/^[0-9a-f]{40,}$/.test(value)) return `${plain} ${brief(value)}…`;
    if (name === "state") return (STATE_TEXT[value] ?? String(value)).toLowerCase();
    return `${plain} ${typeof value === "number" && name !== "request" ? count(value) : value}`;
  }).join(" · ");
}

const RESULTS = {
  verify: (found) => `${plural(found.records, "record")} read in ${seconds(found.seconds)}. ` + (Object.keys(found.damaged).length
    ? "Put aside: " + Object.entries(found.damaged).map(([reason, number]) => `${count(number)} (${reasonLabel(reason).toLowerCase()})`).join(", ") + "."
    : "All are sound."),
  demote: (found) => `${plural(found.blocks, "block")} moved` + (found.in_use_blocks ? `, ${count(found.in_use_blocks)} in use stayed.` : "."),
  drain: (found) => (found.drained ? "All requests have ended." : "Requests were still running when the time was over."),
};

function told(job) {
  if (job.state === "failed") return job.error ?? "It failed.";
  if (job.state === "running") return `running for ${seconds(job.started_ago_s)}`;
  if (job.result && RESULTS[job.kind]) return RESULTS[job.kind](job.result);
  const result = job.result !== null && typeof job.result === "object" ? factsLine(job.result) : job.result === null ? "" : String(job.result);
  return result || `took ${seconds(job.started_ago_s - job.ended_ago_s)}`;
}

const DOTS = { running: "warn", done: "good", failed: "bad" };

/** Ask for the jobs. True while one runs. */
export async function enter() {
  for (const action of ACTIONS) {
    const able = can(action.needs);
    action.button.disabled = !able || !mayWrite();
    action.button.title = !able ? "This cache runs without an engine." : mayWrite() ? "" : READ_ONLY;
  }
  const { jobs } = await get("jobs");
  if (!jobs.length) {
    $("#jobs").replaceChildren(h("li", { class: "soft" }, "None yet."));
    $("#jobs").keptByKey = new Map();
    return false;
  }
  if (!$("#jobs").keptByKey?.size) $("#jobs").replaceChildren();
  keyed($("#jobs"), jobs, (job) => job.id, (job) => h("li", {}, h("span", { class: "state" }), h("span", { class: "soft" }), h("span", { class: "result" })), (element, job) => {
    const [name, when, result] = element.children;
    if (element.state !== job.state) {
      element.state = job.state;
      name.replaceChildren(h("i", { class: `dot ${DOTS[job.state] ?? ""}`, "aria-hidden": "true" }), `${JOB_TEXT[job.kind] ?? sentence(job.kind)}: ${job.state}`);
    }
    say(when, ago(job.ended_ago_s ?? job.started_ago_s));
    say(result, told(job));
    result.classList.toggle("failed-text", job.state === "failed");
  });
  return jobs.some((job) => job.state === "running");
}

// ---- events ----

/** Follow the events until `leave`. After an interruption they go on where they stopped. */
export function follow() {
  if (stop || !can("events")) return;
  stop = new AbortController();
  const { signal } = stop;
  (async () => {
    while (!signal.aborted) {
      try {
        await listen(last, take, signal);
      } catch (error) {
        if (signal.aborted) return;
        if (isMissing(error, "events")) return say($("#events-note"), "This cache tells no events.");
        say($("#events-note"), error.status ? error.message : "Interrupted, trying again");
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  })();
}

export function leave() {
  stop?.abort();
  stop = null;
}

let frame = null;

function take(event) {
  if (event.number === undefined) {
    // A gap: what happened from `first` to `last` is not known any more.
    event = { number: Math.max(event.last, last + 1), at_s: Date.now() / 1000, kind: "missed", facts: { events: event.last - event.first + 1 } };
  }
  if (event.number <= last) events = []; // The server has begun anew, and with it the numbers.
  last = event.number;
  events.unshift(event);
  events.length = Math.min(events.length, KEPT_EVENTS);
  kinds.set(event.kind, (kinds.get(event.kind) ?? 0) + 1);
  frame ??= requestAnimationFrame(() => {
    frame = null;
    draw();
  });
}

function draw() {
  const select = $("#events-kind");
  for (const kind of kinds.keys()) {
    if (![...select.options].some((option) => option.value === kind)) select.append(h("option", { value: kind }, sentence(kind)));
  }
  say($("#events-note"), paused ? "Paused" : `${count(events.length)} shown`);
  if (paused) return;
  const shown = select.value ? events.filter((event) => event.kind === select.value) : events;
  keyed($("#events"), shown, (event) => event.number, (event) => h("div", { class: "event" },
    h("time", {}, clock(event.at_s)), h("span", { class: "kind", title: event.kind }, sentence(event.kind)), h("span", { class: "facts-line" }, factsLine(event.facts))));
}
