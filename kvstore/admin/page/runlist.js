// Runs of blocks as a tree of rows, of which only those in sight exist. Rows are fetched in pages as they come into sight.

import { h, keyed, say } from "./dom.js";
import { ago, count, percent, seconds, short } from "./format.js";
import { titleOf } from "./icicle.js";
import { TIERS, TIER_TEXT } from "./words.js";

const ROW = 34; // Pixels; style.css has the same.
const PAGE = 100;
const MOST_ROWS = 400_000; // What browsers can scroll through: 13.6 million pixels.
const COLUMNS = ["Prefix", "Tokens", "Blocks", "Where", "Hits", "Used", "Kept for"];
const WIDE_ONLY = new Set(["Tokens", "Used", "Kept for"]);

class Branch {
  constructor(run, parent, index) {
    this.run = run;
    this.parent = parent;
    this.index = index;
    this.level = parent ? parent.level + 1 : 0;
    this.open = []; // Expanded children, by index.
    this.pages = new Map(); // Page number -> Branches, or null while it is on its way.
    this.total = null;
  }

  get expanded() {
    return this.total !== null;
  }

  /** Rows below this one that are shown. */
  rows() {
    return (this.total ?? 0) + this.open.reduce((sum, child) => sum + child.rows(), 0);
  }

  child(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  /** The parent and index of the row at that place below this one. */
  at(place) {
    let shift = 0;
    for (const child of this.open) {
      const own = child.index + shift;
      if (place <= own) break;
      const below = child.rows();
      if (place <= own + below) return child.at(place - own - 1);
      shift += below;
    }
    return [this, place - shift];
  }

  /** Where this row stands, the root's first child being 0. */
  place() {
    if (!this.parent) return -1;
    const before = this.parent.open.filter((child) => child.index < this.index);
    return this.parent.place() + 1 + this.index + before.reduce((sum, child) => sum + child.rows(), 0);
  }
}

export class RunList {
  /** load({under, offset, limit}) gives a PrefixPage. pick(run): a row was chosen. failed(error): a page did not come. */
  constructor(box, { load, pick, loaded, failed }) {
    Object.assign(this, { box, load, pick, loaded, failed });
    this.selected = null;
    this.active = 0;
    this.flat = false;
    this.head = h("div", { class: "grid-head", role: "row" }, COLUMNS.map((name, at) => h("span", {
      role: "columnheader", "aria-colindex": String(at + 1), class: WIDE_ONLY.has(name) ? "wide-only" : "",
    }, name)));
    this.space = h("div", { class: "grid-space" });
    this.body = h("div", { class: "grid-body", tabindex: "-1" }, this.space);
    this.none = h("p", { class: "empty", hidden: true }, "No run meets this.");
    box.append(this.head, this.body, this.none);
    this.body.addEventListener("scroll", () => this.#soon(), { passive: true });
    this.space.addEventListener("click", (event) => this.#click(event));
    this.space.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#soon()).observe(this.body);
    this.root = new Branch(null, null, 0);
  }

  /** Ask anew; the list begins at its top. */
  async reload(flat) {
    this.flat = flat;
    this.root = new Branch(null, null, 0);
    const root = this.root;
    await this.#fetch(root, 0);
    if (root !== this.root) return;
    this.active = 0;
    this.body.scrollTop = 0;
    this.#draw();
  }

  select(key) {
    this.selected = key;
    this.#draw();
  }

  async #fetch(branch, page) {
    if (branch.pages.has(page)) return;
    branch.pages.set(page, null);
    try {
      const got = await this.load({ under: branch.run?.key, offset: page * PAGE, limit: PAGE });
      branch.pages.set(page, got.rows.map((run, at) => new Branch(run, branch, page * PAGE + at)));
      branch.total = got.total;
      if (!branch.parent) this.loaded(got);
    } catch (error) {
      branch.pages.delete(page);
      this.failed(error);
    }
  }

  async #expand(branch) {
    await this.#fetch(branch, 0);
    if (!branch.expanded || branch.parent.open.includes(branch)) return;
    branch.parent.open.push(branch);
    branch.parent.open.sort((one, other) => one.index - other.index);
    this.#draw();
  }

  #collapse(branch) {
    branch.parent.open = branch.parent.open.filter((child) => child !== branch);
    branch.total = null;
    branch.pages.clear();
    branch.open = [];
    this.#draw();
  }

  #soon() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.#draw();
    });
  }

  #draw() {
    const all = Math.min(MOST_ROWS, this.root.rows());
    this.space.style.height = `${all * ROW}px`;
    this.none.hidden = this.root.total !== 0;
    this.box.setAttribute("aria-rowcount", String(all + 1));
    if (!this.body.clientHeight) return;
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW) - 6);
    const last = Math.min(all - 1, Math.ceil((this.body.scrollTop + this.body.clientHeight) / ROW) + 6);
    const rows = [];
    const wanted = new Map();
    const places = new Set([this.active]);
    for (let place = first; place <= last; place += 1) places.add(place);
    for (const place of places) {
      if (place >= all) continue;
      const [parent, index] = this.root.at(place);
      const branch = parent.child(index);
      const page = Math.floor(index / PAGE);
      if (!branch && place >= first) wanted.set(`${parent.run?.key ?? ""} ${page}`, [parent, page]);
      rows.push({ place, parent, index, branch });
    }
    rows.sort((one, other) => one.place - other.place);
    keyed(this.space, rows, (row) => row.place, () => this.#make(), (element, row) => this.#fill(element, row));
    if (wanted.size) this.#want(wanted);
  }

  /** Fetch pages once the view rests: who drags through 100,000 rows does not ask for all of them. */
  #want(wanted) {
    clearTimeout(this.resting);
    this.resting = setTimeout(async () => {
      await Promise.all([...wanted.values()].map(([parent, page]) => this.#fetch(parent, page)));
      this.#draw();
    }, 60);
  }

  #make() {
    const row = h("div", { class: "grid-row", role: "row" },
      h("div", { class: "prefix-cell", role: "gridcell" }, h("span", { class: "twist", "aria-hidden": "true" }), h("span", { class: "label" }), h("span", { class: "lock", hidden: true }, "tenant")),
      h("span", { role: "gridcell", class: "wide-only" }), h("span", { role: "gridcell" }),
      h("span", { role: "gridcell", class: "where" }, TIERS.map((tier) => h("span", { class: tier }, h("i")))),
      h("span", { role: "gridcell" }), h("span", { role: "gridcell", class: "wide-only" }), h("span", { role: "gridcell", class: "wide-only" }));
    return row;
  }

  #fill(element, { place, parent, index, branch }) {
    element.place = place;
    element.branch = branch;
    element.style.transform = `translateY(${place * ROW}px)`;
    element.tabIndex = place === this.active ? 0 : -1;
    element.setAttribute("aria-rowindex", String(place + 2));
    element.setAttribute("aria-level", String(parent.level + 1));
    element.setAttribute("aria-posinset", String(index + 1));
    element.setAttribute("aria-setsize", String(parent.total ?? -1));
    element.classList.toggle("waiting", !branch);
    element.firstChild.style.paddingLeft = `${Math.min(parent.level, 12) * 14}px`;
    const run = branch?.run;
    element.setAttribute("aria-selected", String(Boolean(run) && run.key === this.selected));
    const twists = Boolean(run?.children) && !this.flat;
    element.firstChild.firstChild.classList.toggle("leaf", !twists);
    if (twists) element.setAttribute("aria-expanded", String(branch.expanded));
    else element.removeAttribute("aria-expanded");
    const [cell, tokens, blocks, where, hits, used, kept] = element.children;
    say(cell.children[1], run ? titleOf(run) : "");
    cell.children[1].classList.toggle("mono", Boolean(run) && !run.text);
    cell.children[2].hidden = !run?.private;
    say(tokens, run ? `${count(run.start_token)}–${count(run.end_token)}` : "");
    say(blocks, run ? count(run.blocks) : "");
    TIERS.forEach((tier, at) => {
      where.children[at].firstChild.style.width = run ? `${(run.blocks_by_tier[tier] / Math.max(1, run.blocks)) * 100}%` : "0";
    });
    const shares = run ? TIERS.map((tier) => `${TIER_TEXT[tier]} ${percent(run.blocks_by_tier[tier] / Math.max(1, run.blocks), 0)}`).join(", ") : "";
    where.setAttribute("aria-label", shares);
    where.title = shares;
    say(hits, run ? short(run.hits) : "");
    say(used, run ? ago(run.last_used_ago_s).replace(" ago", "") : "");
    say(kept, run ? (run.ttl_s === null ? "no end" : seconds(run.ttl_s)) : "");
  }

  #click(event) {
    const row = event.target.closest(".grid-row");
    if (!row?.branch) return;
    this.#focus(row.place, false);
    if (event.target.closest(".twist")) this.#toggle(row.branch);
    else this.pick(row.branch.run);
  }

  #toggle(branch) {
    if (branch.expanded) this.#collapse(branch);
    else if (branch.run.children && !this.flat) this.#expand(branch);
  }

  #focus(place, scroll = true) {
    const all = Math.min(MOST_ROWS, this.root.rows());
    this.active = Math.max(0, Math.min(all - 1, place));
    const top = this.active * ROW;
    const { scrollTop, clientHeight } = this.body;
    if (scroll && top < scrollTop) this.body.scrollTop = top;
    if (scroll && top + ROW > scrollTop + clientHeight) this.body.scrollTop = top + ROW - clientHeight;
    this.#draw();
    [...this.space.children].find((row) => row.place === this.active)?.focus({ preventScroll: true });
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const row = event.target.closest(".grid-row");
    if (!row) return;
    const { branch } = row;
    const screen = Math.max(1, Math.floor(this.body.clientHeight / ROW) - 1);
    const moves = {
      ArrowDown: () => this.#focus(this.active + 1),
      ArrowUp: () => this.#focus(this.active - 1),
      PageDown: () => this.#focus(this.active + screen),
      PageUp: () => this.#focus(this.active - screen),
      Home: () => this.#focus(0),
      End: () => this.#focus(Infinity),
      ArrowRight: () => branch && (branch.expanded ? this.#focus(this.active + 1) : this.#toggle(branch)),
      ArrowLeft: () => branch && (branch.expanded ? this.#collapse(branch) : branch.parent.parent && this.#focus(branch.parent.place())),
      Enter: () => branch && this.pick(branch.run, true),
      " ": () => branch && this.pick(branch.run),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }
}
