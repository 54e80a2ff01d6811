// Who looks at the page, and what the server can do: what decides which parts are shown, and how.

import { Refused } from "./api.js";

export const session = {
  role: "full",
  text: false,
  /** Names of the subject's methods, null while not known. */
  can: null,
};

const missing = new Set();

/** Whether the subject has this method, as far as is known. */
export const can = (name) => !missing.has(name) && (session.can === null || session.can.includes(name));

export const mayWrite = () => session.role === "full";

/** Note that the server answered 501 to something. True if it did. */
export function isMissing(error, name) {
  if (!(error instanceof Refused) || error.status !== 501) return false;
  missing.add(name);
  return true;
}

export const BARE = "This cache runs without an engine, which is what would know this.";
export const READ_ONLY = "The token in use may only read.";
