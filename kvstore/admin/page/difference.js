// Two sides of a difference, with what is not the same on both marked.

import { h } from "./dom.js";
import { count } from "./format.js";
import { kindLabel } from "./words.js";

const MOST_WORDS = 600;

const wordsOf = (text) => text.match(/\s+|[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu) ?? [];

/** Which pieces of one and of the other are not in their longest common subsequence: [flags, flags]. */
export function changed(one, other) {
  let start = 0;
  while (start < one.length && start < other.length && one[start] === other[start]) start += 1;
  let end = 0;
  while (end < one.length - start && end < other.length - start && one.at(-1 - end) === other.at(-1 - end)) end += 1;
  const left = one.slice(start, one.length - end);
  const right = other.slice(start, other.length - end);
  const flags = [new Array(one.length).fill(false), new Array(other.length).fill(false)];
  const common = left.length * right.length <= MOST_WORDS ** 2 ? lcs(left, right) : [new Set(), new Set()];
  left.forEach((_, at) => (flags[0][start + at] = !common[0].has(at)));
  right.forEach((_, at) => (flags[1][start + at] = !common[1].has(at)));
  return flags;
}

function lcs(left, right) {
  const wide = right.length + 1;
  const best = new Uint16Array((left.length + 1) * wide);
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      best[i * wide + j] = left[i] === right[j] ? best[(i + 1) * wide + j + 1] + 1 : Math.max(best[(i + 1) * wide + j], best[i * wide + j + 1]);
    }
  }
  const kept = [new Set(), new Set()];
  let i = 0;
  let j = 0;
  while (i < left.length && j < right.length) {
    if (left[i] === right[j]) {
      kept[0].add(i++);
      kept[1].add(j++);
    } else if (best[(i + 1) * wide + j] >= best[i * wide + j + 1]) i += 1;
    else j += 1;
  }
  return kept;
}

/** White space that differs is shown, as it would not be seen otherwise. */
const visible = (text) => text.replaceAll(" ", "·").replaceAll("\t", "→\t").replaceAll("\r", "␍").replaceAll("\n", "↵\n");

function pieces(words, flags) {
  const parts = [];
  let at = 0;
  while (at < words.length) {
    let end = at;
    while (end < words.length && flags[end] === flags[at]) end += 1;
    const text = words.slice(at, end).join("");
    parts.push(flags[at] ? h("mark", {}, /^\s+$/.test(text) ? visible(text) : text) : text);
    at = end;
  }
  return parts;
}

function side(title, kind, before, content) {
  return h("div", { class: `side-${kind}` }, h("h4", {}, title),
    h("div", { class: "prose", tabindex: "0", "aria-label": title }, before ? h("span", { class: "equal" }, before) : null, content));
}

/** The two sides of a Difference, as text where there is text, else as token ids. */
export function sides(difference) {
  const textual = difference.asked !== null && difference.cached !== null;
  if (!textual && !difference.asked_ids.length && !difference.cached_ids.length) {
    return h("p", { class: "hint" }, "What the two say there is not shown: it takes show_text, and the full token where there is one.");
  }
  const spaced = (ids) => ids.flatMap((id, at) => (at ? [" ", String(id)] : [String(id)]));
  const one = textual ? wordsOf(difference.asked) : spaced(difference.asked_ids);
  const other = textual ? wordsOf(difference.cached) : spaced(difference.cached_ids);
  const flags = changed(one, other);
  const before = textual ? (difference.before ?? "") : difference.before_ids.length ? difference.before_ids.join(" ") + " " : "";
  const unit = textual ? "" : " (token ids)";
  return h("div", { class: "sides" },
    side(`This prompt${unit}`, "asked", before, pieces(one, flags[0])),
    side(`Cached${unit}`, "cached", before, pieces(other, flags[1])));
}

export function differencePart(difference) {
  const where = difference.section ? `in the ${difference.section}` : "";
  return h("section", { class: "difference" },
    h("header", {}, h("h3", {}, `Leaves the cache at token ${count(difference.at_token)} ${where}`),
      difference.kind ? h("span", { class: "chip" }, kindLabel(difference.kind)) : null),
    sides(difference),
    difference.advice ? h("p", { class: "advice-line" }, difference.advice) : null);
}
