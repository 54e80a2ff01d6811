// The tree of prefixes as an icicle from left to right: a column for each level, height by blocks. Only what is large
// enough to be seen is asked for; the rest of each level is one block that says how many it stands for.

import { h, keyed, say } from "./dom.js";
import { brief, count, plural, short } from "./format.js";
import { TIERS } from "./words.js";

const ROWS = 40; // Children asked for at most, of one run.
const LINE = 18; // Pixels that a line of text takes.
const TWO_LINES = 40;
const REQUESTS = 24; // For one picture.

/**
 * Divide a height among the largest of a level and the rest of it: by blocks, but so that the first of them have room for
 * a line each as long as they take no more than half. What has no room goes into the rest.
 */
export function share(rows, total, blocks, tall) {
  const known = rows.reduce((sum, run) => sum + weight(run), 0);
  const unseen = total - rows.length;
  // Without a sum from the server: none of the rest is larger than the smallest that is known.
  const all = Math.max(1, blocks ?? known + (unseen ? Math.min(known, unseen * weight(rows.at(-1) ?? { blocks: 1, blocks_below: 0 })) : 0));
  const fair = (run) => (weight(run) / all) * tall;
  const lines = Math.floor(tall / LINE);
  let shown = rows.filter((run, at) => at < lines / 2 || fair(run) >= LINE).slice(0, lines);
  if (shown.length < total && shown.length === lines) shown = shown.slice(0, lines - 1);
  const parts = shown.map((run, index) => ({ run, index, of: total, height: Math.max(LINE, fair(run)) }));
  const rest = total - shown.length;
  const left = tall - shown.reduce((sum, run) => sum + fair(run), 0);
  if (rest > 0) parts.push({ rest, run: null, index: shown.length, of: shown.length + 1, height: Math.max(Math.min(LINE, tall), left) });
  const least = Math.min(LINE, tall);
  const over = parts.reduce((sum, part) => sum + part.height, 0) - tall;
  const loose = parts.reduce((sum, part) => sum + part.height - least, 0);
  if (loose > 0) for (const part of parts) part.height -= (over * (part.height - least)) / loose;
  return parts;
}

export const weight = (run) => run.blocks + run.blocks_below;

/** The fastest tier that holds at least half of a run, or the slowest that holds any. */
export function mainTier(run) {
  return TIERS.find((tier) => run.blocks_by_tier[tier] * 2 >= run.blocks)
    ?? TIERS.findLast((tier) => run.blocks_by_tier[tier] > 0) ?? "";
}

export const titleOf = (run) => (run.text ? run.text.replace(/\s+/g, " ").trim() : brief(run.key));

export class Icicle {
  /**
   * load(key, limit) gives a PrefixPage, the largest first. pick(run) and zoomed(path) are told what the user does,
   * failed(error) what did not come.
   */
  constructor(box, { load, pick, zoomed, failed }) {
    this.box = box;
    this.load = load;
    this.pick = pick;
    this.zoomed = zoomed;
    this.failed = failed;
    this.pages = new Map(); // run key, "" for all -> {rows, total, blocks}
    this.path = []; // Runs from the first to the one that is zoomed to.
    this.selected = null;
    this.active = "";
    this.nodes = [];
    box.addEventListener("click", (event) => this.#click(event));
    box.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#layout()).observe(box);
  }

  /** Forget what was loaded and ask again. */
  async refresh() {
    this.pages.clear();
    await this.#fill();
  }

  /** Show what follows the last run of the path; all prompts if it is empty. */
  async zoom(path) {
    this.path = path;
    this.active = path.at(-1)?.key ?? "";
    this.zoomed(path);
    await this.#fill();
  }

  select(key) {
    this.selected = key;
    for (const element of this.box.children) element.setAttribute("aria-selected", String(element.node.id === key));
  }

  async #page(key) {
    if (!this.pages.has(key)) {
      this.pages.set(key, null);
      try {
        this.pages.set(key, await this.load(key, ROWS));
      } catch (error) {
        this.pages.set(key, { rows: [], total: 0 }); // Gone meanwhile, or the server is: until the next refresh.
        this.failed(error);
      }
    }
    return this.pages.get(key);
  }

  /** Ask for the levels one after the other, as long as what they show is large enough. */
  async #fill() {
    const turn = (this.turn = Symbol("turn"));
    await this.#page(this.path.at(-1)?.key ?? "");
    let left = REQUESTS;
    for (;;) {
      if (turn !== this.turn) return;
      this.#layout();
      const wanted = this.nodes.filter((node) => node.run?.children && node.height >= 2 * LINE && node.level < this.columns - 1
        && !this.pages.has(node.id)).sort((one, other) => other.height - one.height).slice(0, left);
      if (!wanted.length) return;
      left -= wanted.length;
      await Promise.all(wanted.map((node) => this.#page(node.id)));
    }
  }

  #layout() {
    const { width, height } = this.box.getBoundingClientRect();
    if (width < 100) return;
    const first = width < 600 ? 34 : 140; // What is zoomed to needs less room than what follows it.
    this.columns = 1 + Math.max(1, Math.min(6, Math.floor((width - first) / 205)));
    const nodes = [];
    const put = (node) => {
      nodes.push({ ...node });
      return nodes.at(-1);
    };
    const branch = (parent, level, top, tall) => {
      if (level >= this.columns) return;
      const page = this.pages.get(parent.id);
      const total = page?.total ?? parent.run?.children ?? 0;
      if (!total) return;
      let at = top;
      for (const each of share(page?.rows ?? [], total, parent.run?.blocks_below ?? page?.blocks, tall)) {
        const id = each.run?.key ?? `${parent.id} rest`;
        const node = put({ ...each, id, parent: parent.id, level, top: at });
        if (each.run) branch(node, level + 1, at, each.height);
        at += each.height;
      }
    };
    const run = this.path.at(-1) ?? null;
    const root = put({ id: run?.key ?? "", run, parent: null, level: 0, top: 0, height, index: 0, of: 1 });
    branch(root, 1, 0, height);
    // Levels that are not there leave their room to those that are.
    const levels = Math.min(this.columns - 1, Math.max(3, ...nodes.map((node) => node.level)));
    const other = (width - first) / levels;
    for (const node of nodes) {
      node.left = node.level ? first + (node.level - 1) * other : 0;
      node.width = node.level ? other : first;
    }
    this.nodes = nodes;
    if (!nodes.some((node) => node.id === this.active)) this.active = root.id;
    keyed(this.box, nodes, (node) => node.id, (node) => this.#make(node), (element, node) => this.#place(element, node));
  }

  #make(node) {
    const lanes = node.run ? h("div", { class: "lanes", "aria-hidden": "true" }, TIERS.map((tier) => h("i", { class: tier }))) : null;
    return h("div", { role: "treeitem" }, lanes, h("div", { class: "title" }), h("div", { class: "sub" }));
  }

  #place(element, node) {
    const { run } = node;
    const root = node.level === 0;
    element.node = node;
    element.className = `node ${run ? mainTier(run) : node.rest ? "rest" : "root"}`;
    element.style.transform = `translate(${node.left.toFixed(1)}px, ${node.top.toFixed(1)}px)`;
    element.style.width = `${node.width.toFixed(1)}px`;
    element.style.height = `${node.height.toFixed(1)}px`;
    element.tabIndex = node.id === this.active ? 0 : -1;
    element.setAttribute("aria-level", String(node.level + 1));
    element.setAttribute("aria-setsize", String(node.of));
    element.setAttribute("aria-posinset", String(node.index + 1));
    element.setAttribute("aria-selected", String(run !== null && node.id === this.selected));
    if (root || run?.children) element.setAttribute("aria-expanded", String(this.nodes.some((each) => each.parent === node.id)));
    const [title, sub] = element.querySelectorAll(".title, .sub");
    const words = this.#words(node);
    say(title, node.height >= LINE - 1 && node.width > 60 ? words[0] : "");
    say(sub, node.height >= TWO_LINES && node.width > 60 ? words[1] : "");
    sub.hidden = node.height < TWO_LINES;
    element.setAttribute("aria-label", words.join(", "));
    element.title = words.join("\n");
    if (run) {
      const lanes = element.firstChild.children;
      TIERS.forEach((tier, at) => (lanes[at].style.height = `${(run.blocks_by_tier[tier] / Math.max(1, run.blocks)) * 100}%`));
    }
  }

  #words(node) {
    if (node.rest) return [plural(node.rest, node.index ? "smaller run" : "run"), "zoom in, or see the list"];
    if (!node.run) {
      const total = this.pages.get("")?.total;
      return ["All prompts", total === undefined ? "" : plural(total, "beginning")];
    }
    const run = node.run;
    return [titleOf(run), `${plural(run.blocks, "block")} + ${short(run.blocks_below)} below · ${plural(run.hits, "hit")}`];
  }

  #pathTo(node) {
    const path = [];
    for (let at = node; at?.run && at.level > 0; at = this.nodes.find((each) => each.id === at.parent)) path.unshift(at.run);
    return [...this.path, ...path];
  }

  #focus(node) {
    if (!node) return;
    this.active = node.id;
    for (const element of this.box.children) {
      element.tabIndex = element.node.id === node.id ? 0 : -1;
      if (element.node.id === node.id) element.focus({ preventScroll: false });
    }
  }

  async #enter(node) {
    if (node.rest) return;
    if (node.level === 0) {
      if (this.path.length) await this.zoom(this.path.slice(0, -1));
    } else {
      this.pick(node.run);
      if (node.run.children) await this.zoom(this.#pathTo(node));
    }
    this.#focus(this.nodes.find((each) => each.id === node.id) ?? this.nodes[0]);
  }

  #click(event) {
    const node = event.target.closest(".node")?.node;
    if (node) this.#enter(node);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const node = event.target.closest(".node")?.node;
    if (!node) return;
    const column = this.nodes.filter((each) => each.level === node.level).sort((one, other) => one.top - other.top);
    const at = column.indexOf(node);
    const moves = {
      ArrowDown: () => this.#focus(column[at + 1]),
      ArrowUp: () => this.#focus(column[at - 1]),
      Home: () => this.#focus(column[0]),
      End: () => this.#focus(column.at(-1)),
      ArrowRight: () => this.#focus(this.nodes.find((each) => each.parent === node.id)),
      ArrowLeft: () => (node.parent === null ? this.path.length && this.#enter(node) : this.#focus(this.nodes.find((each) => each.id === node.parent))),
      Enter: () => this.#enter(node),
      " ": () => node.run && this.pick(node.run),
      Escape: () => this.path.length && this.zoom(this.path.slice(0, -1)).then(() => this.#focus(this.nodes[0])),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }
}

export const rootLabel = (total) => (total === undefined ? "All prompts" : `All prompts (${count(total)})`);
