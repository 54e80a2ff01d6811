// Elements from plain calls. Data gets into the page as text and attributes only: nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function apply(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [kind, run] of Object.entries(value)) element.addEventListener(kind, run);
    } else if (name === "style") {
      // By CSSOM: the page's Content-Security-Policy forbids style attributes.
      for (const [key, setting] of Object.entries(value)) element.style.setProperty(key, setting);
    } else if (name === "data") {
      Object.assign(element.dataset, value);
    } else if (name === "value" || name === "checked" || name === "disabled") {
      element[name] = value;
    } else {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
}

/** An element with properties and children; strings and numbers become text. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  apply(element, props);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  apply(element, props);
  element.append(...children);
  return element;
}

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/** Set text only where it changed, so that selections and screen readers are left alone. */
export function say(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

export function show(element, visible) {
  element.hidden = !visible;
}

/**
 * Make the parent's children those of the items, in order. Children are kept by key: what has the focus keeps it.
 * make(item) returns an element, update(element, item) fills it.
 */
export function keyed(parent, items, keyOf, make, update = () => {}) {
  const kept = parent.keptByKey ?? (parent.keptByKey = new Map());
  const wanted = new Map(items.map((item) => [keyOf(item), item]));
  const focused = document.activeElement;
  for (const [key, element] of kept) {
    if (wanted.has(key)) continue;
    element.remove();
    kept.delete(key);
  }
  let before = parent.firstChild;
  for (const [key, item] of wanted) {
    let element = kept.get(key);
    if (!element) kept.set(key, (element = make(item)));
    update(element, item);
    if (element === before) before = before.nextSibling;
    else parent.insertBefore(element, before);
  }
  // An element that is moved loses the focus.
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
}
