// Numbers as people read them. An absent value is a dash, never a zero. Spaces between number and unit do not break.

const SPACE = "\u00a0";
export const NONE = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

const absent = (value) => value === null || value === undefined || Number.isNaN(value);

/** Three digits that count: 1.42, 14.2, 142. */
function three(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 99.95 || value === 0 ? 0 : size >= 9.995 ? 1 : 2);
}

export function bytes(value) {
  if (absent(value)) return NONE;
  let unit = 0;
  let scaled = value;
  while (Math.abs(scaled) >= 1023.5 && unit < BYTE_UNITS.length - 1) {
    scaled /= 1024;
    unit += 1;
  }
  return (unit === 0 ? whole.format(scaled) : three(scaled)) + SPACE + BYTE_UNITS[unit];
}

export const rate = (value) => (absent(value) ? NONE : bytes(value) + "/s");

export const count = (value) => (absent(value) ? NONE : whole.format(value));

/** Large counts in thousands and millions; small ones in full. */
export function short(value) {
  if (absent(value)) return NONE;
  if (Math.abs(value) < 10_000) return whole.format(value);
  for (const [size, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return three(value / size) + SPACE + name;
  }
  return whole.format(value);
}

export const plural = (value, one, many = one + "s") => `${count(value)}${SPACE}${value === 1 ? one : many}`;

export const percent = (share, digits = 1) => (absent(share) ? NONE : (share * 100).toFixed(digits) + SPACE + "%");

export function seconds(value) {
  if (absent(value)) return NONE;
  if (value < 0.0005) return "0" + SPACE + "ms";
  if (value < 1) return three(value * 1000) + SPACE + "ms";
  if (value < 10) return value.toFixed(1) + SPACE + "s";
  if (value < 90) return Math.round(value) + SPACE + "s";
  const minutes = Math.round(value / 60);
  if (minutes < 60) return minutes + SPACE + "min";
  if (minutes < 48 * 60) {
    const rest = minutes % 60;
    return Math.floor(minutes / 60) + SPACE + "h" + (rest ? SPACE + rest + SPACE + "min" : "");
  }
  return Math.round(minutes / 1440) + SPACE + "days";
}

export const ago = (value) => (absent(value) ? "never" : value < 1 ? "just now" : seconds(value) + " ago");

const pad = (value) => String(value).padStart(2, "0");

export function clock(epochS, withSeconds = true) {
  const at = new Date(epochS * 1000);
  return `${pad(at.getHours())}:${pad(at.getMinutes())}${withSeconds ? ":" + pad(at.getSeconds()) : ""}`;
}

/** "64 GiB", "512m" or "1048576" as bytes; null if it is none of these. */
export function parseBytes(text) {
  const found = /^\s*([\d.,_]+)\s*([kmgtp]?)(i?b?)\s*$/i.exec(text);
  if (!found) return null;
  const number = Number(found[1].replace(/[,_]/g, ""));
  const power = ["", "k", "m", "g", "t", "p"].indexOf(found[2].toLowerCase());
  const base = /^b$/i.test(found[3]) && power > 0 ? 1000 : 1024;
  return Number.isFinite(number) ? Math.round(number * base ** power) : null;
}

/** A size that reads back as the same number of bytes. */
export function exactBytes(value) {
  let unit = 0;
  let scaled = value;
  while (scaled >= 1024 && scaled % 1024 === 0 && unit < BYTE_UNITS.length - 1) {
    scaled /= 1024;
    unit += 1;
  }
  return unit ? `${scaled} ${BYTE_UNITS[unit]}` : String(value);
}

/** The beginning of a key: enough to tell it from others. */
export const brief = (key, length = 12) => (key.length > length ? key.slice(0, length) : key);
