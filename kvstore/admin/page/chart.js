// The share of prompt tokens served by each tier over time, stacked, with what was asked below it.

import { h, say, svg } from "./dom.js";
import { clock, count, percent } from "./format.js";
import { TIERS, TIER_TEXT } from "./words.js";

const GAP_S = 12; // Longer than two samples: nothing was measured in between.
const LEFT = 42;
const RIGHT = 8;
const TOP = 8;
const VOLUME = 34;
const AXIS = 22;

/**
 * Merge points until there are at most `most`, weighing shares by the tokens asked for. A point is
 * [epoch_s, device, host, disk, prompt_tokens]; shares are null where nothing was asked.
 */
export function merged(points, most) {
  const size = Math.ceil(points.length / most);
  if (size <= 1) return points;
  const result = [];
  for (let start = 0; start < points.length; start += size) {
    const group = points.slice(start, start + size);
    const asked = group.reduce((sum, point) => sum + point[4], 0);
    const shares = [1, 2, 3].map((at) =>
      asked ? group.reduce((sum, point) => sum + (point[at] ?? 0) * point[4], 0) / asked : null,
    );
    result.push([group.at(-1)[0], ...shares, asked]);
  }
  return result;
}

/** Runs of points that follow each other and in which something was asked. */
function runsOf(points, gapS) {
  const runs = [];
  let last = null;
  for (const point of points) {
    if (point[1] === null) {
      last = null;
      continue;
    }
    if (last === null || point[0] - last > gapS) runs.push([]);
    runs.at(-1).push(point);
    last = point[0];
  }
  return runs;
}

export class HistoryChart {
  constructor(parent) {
    this.points = [];
    this.minutes = 60;
    this.chosen = null;
    this.when = h("span", { class: "when" }, "Now");
    this.values = TIERS.map(() => h("b", {}, "–"));
    this.total = h("b", {}, "–");
    this.asked = h("b", {}, "–");
    const readout = h("div", { class: "readout live" }, this.when,
      TIERS.map((tier, at) => h("span", {}, h("i", { class: `swatch ${tier}` }), TIER_TEXT[tier], this.values[at])),
      h("span", {}, "Together", this.total), h("span", {}, h("i", { class: "swatch" }), "Tokens asked", this.asked));
    this.svg = svg("svg", { "aria-hidden": "true" });
    this.box = h("div", {
      class: "chart live", tabindex: "0", role: "slider", "aria-label": "Hit rate over time; arrow keys move through it",
      "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0", "aria-valuetext": "No figures yet",
      on: {
        keydown: (event) => this.#key(event),
        pointermove: (event) => this.#point(event),
        pointerleave: () => this.#choose(null),
        blur: () => this.#choose(null),
      },
    }, this.svg);
    parent.append(readout, this.box);
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  /** Show these points, as /admin/v1/tiers gives them. */
  set(points) {
    this.points = points;
    this.draw();
  }

  draw() {
    const { width, height } = this.box.getBoundingClientRect();
    if (width < 80) return;
    const end = this.points.length ? this.points.at(-1)[0] : Date.now() / 1000;
    const begin = end - this.minutes * 60;
    const within = this.points.filter((point) => point[0] >= begin);
    this.shown = merged(within, Math.floor((width - LEFT - RIGHT) / 3));
    const step = within.length ? Math.max(1, Math.ceil(within.length / Math.max(1, this.shown.length))) : 1;
    const bottom = height - AXIS - VOLUME;
    this.x = (at) => LEFT + ((at - begin) / (end - begin)) * (width - LEFT - RIGHT);
    const y = (share) => TOP + (1 - Math.min(1, share)) * (bottom - TOP);
    const parts = [...this.#grid(width, bottom, height, begin, end, y)];
    const areas = svg("g", { class: "areas" });
    for (const run of runsOf(this.shown, step * 5 + GAP_S - 5)) {
      const floor = run.map(() => 0);
      TIERS.forEach((tier, index) => {
        const below = run.map((point, at) => [this.x(point[0]), y(floor[at])]);
        run.forEach((point, at) => (floor[at] += point[index + 1] ?? 0));
        const above = run.map((point, at) => [this.x(point[0]), y(floor[at])]);
        if (run.length === 1) for (const side of [below, above]) side.push([side[0][0] + 2, side[0][1]]);
        const line = [...above, ...below.reverse()].map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`);
        areas.append(svg("path", { class: tier, d: `M${line.join("L")}Z` }));
      });
    }
    // A point after a gap has the tokens of all of it: what is drawn is tokens by time.
    const speeds = this.shown.map((point, at) => point[4] / Math.max(step * 5, at ? point[0] - this.shown[at - 1][0] : 0));
    const most = Math.max(0.001, ...speeds);
    const wide = ((step * 5) / (this.minutes * 60)) * (width - LEFT - RIGHT);
    const steps = this.shown.map((point, at) => {
      const right = this.x(point[0]);
      const tall = height - AXIS - (speeds[at] / most) * (VOLUME - 12);
      return `M${(right - wide - 0.3).toFixed(1)} ${height - AXIS}V${tall.toFixed(1)}H${right.toFixed(1)}V${height - AXIS}Z`;
    });
    const volume = svg("path", { class: "volume", d: steps.join("") });
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: height - AXIS, visibility: "hidden" });
    this.svg.replaceChildren(...parts, areas, volume, this.cursor);
    this.#choose(this.chosen, true);
  }

  *#grid(width, bottom, height, begin, end, y) {
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      const at = Math.round(y(share)) + 0.5;
      yield svg("line", { class: "grid-line", x1: LEFT, x2: width - RIGHT, y1: at, y2: at });
      const text = svg("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end" });
      text.textContent = `${share * 100}\u00a0%`;
      yield text;
    }
    const span = end - begin;
    const every = [60, 120, 300, 600, 900].find((size) => (span / size) * 70 <= width - LEFT) ?? 900;
    for (let at = Math.ceil(begin / every) * every; at <= end; at += every) {
      const px = this.x(at);
      if (px < LEFT + 12 || px > width - 20) continue;
      const text = svg("text", { x: px, y: height - 5, "text-anchor": "middle" });
      text.textContent = clock(at, false);
      yield text;
    }
    yield svg("line", { class: "grid-line", x1: LEFT, x2: width - RIGHT, y1: height - AXIS + 0.5, y2: height - AXIS + 0.5 });
  }

  #choose(index, quietly = false) {
    const last = (this.shown?.length ?? 0) - 1;
    this.chosen = index === null || last < 0 ? null : Math.max(0, Math.min(last, index));
    const point = this.shown?.[this.chosen ?? last];
    say(this.when, this.chosen === null ? "Now" : clock(point[0]));
    const shares = point ? point.slice(1, 4) : [null, null, null];
    shares.forEach((share, at) => say(this.values[at], percent(share)));
    const together = shares[0] === null ? null : shares.reduce((sum, share) => sum + share, 0);
    say(this.total, percent(together));
    say(this.asked, point ? count(point[4]) : "–");
    if (this.cursor) {
      this.cursor.setAttribute("visibility", this.chosen === null ? "hidden" : "visible");
      if (point) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, Math.round(this.x(point[0])) + 0.5);
    }
    if (quietly && document.activeElement !== this.box) return;
    this.box.setAttribute("aria-valuemax", String(Math.max(0, last)));
    this.box.setAttribute("aria-valuenow", String(this.chosen ?? Math.max(0, last)));
    const told = TIERS.map((tier, at) => `${TIER_TEXT[tier]} ${percent(shares[at])}`).join(", ");
    this.box.setAttribute("aria-valuetext", point ? `${clock(point[0])}: ${told}, of ${count(point[4])} tokens` : "No figures yet");
  }

  #point(event) {
    if (!this.shown?.length) return;
    const px = event.clientX - this.box.getBoundingClientRect().left;
    let best = 0;
    this.shown.forEach((point, at) => {
      if (Math.abs(this.x(point[0]) - px) < Math.abs(this.x(this.shown[best][0]) - px)) best = at;
    });
    this.#choose(best);
  }

  #key(event) {
    const last = (this.shown?.length ?? 0) - 1;
    const now = this.chosen ?? last;
    const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - 10, PageDown: now + 10, Home: 0, End: last, Escape: null };
    if (!(event.key in moves) || last < 0) return;
    event.preventDefault();
    this.#choose(moves[event.key]);
  }
}

/** A line of one tier's shares, without axes: the shape says enough, the figure stands beside it. */
export function sparkline(element, shares) {
  const known = shares.filter((share) => share !== null);
  const most = Math.max(0.05, ...known);
  const step = 100 / Math.max(1, shares.length - 1);
  const points = [];
  shares.forEach((share, at) => {
    if (share !== null) points.push(`${(at * step).toFixed(2)} ${(30 - (share / most) * 27).toFixed(2)}`);
  });
  const base = svg("line", { class: "base", x1: 0, x2: 100, y1: 30, y2: 30 });
  if (points.length < 2) return element.replaceChildren(base);
  const first = points[0].split(" ")[0];
  const last = points.at(-1).split(" ")[0];
  return element.replaceChildren(
    svg("path", { class: "area", d: `M${first} 30L${points.join("L")}L${last} 30Z` }),
    base,
    svg("path", { class: "line", d: `M${points.join("L")}` }),
  );
}
