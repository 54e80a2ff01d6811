// The endpoint as this page sees it: JSON in and out, errors as sentences, and whether anybody answers.

const TIMEOUT_MS = 15_000;
const STORED_TOKEN = "kvtide-token";

/** An answer that is no success. status 0: there was no answer. errors: by field, [{path, message}]. */
export class Refused extends Error {
  constructor(status, sentence, errors = []) {
    super(sentence);
    this.status = status;
    this.errors = errors;
  }
}

let token = sessionStorage.getItem(STORED_TOKEN);
let asking = null;
let declined = false;

export const wiring = {
  /** Asks the user for a token; resolves with it. Set by the page. */
  askToken: async () => null,
  /** Called after each request with whether the server answered. */
  heard: () => {},
};

export function setToken(value) {
  token = value;
  declined = false;
  if (value) sessionStorage.setItem(STORED_TOKEN, value);
  else sessionStorage.removeItem(STORED_TOKEN);
}

export const hasToken = () => Boolean(token);

/** Whether the server wants a token and the user would rather not give one: then nobody asks until they do. */
export const hasDeclined = () => declined;

function url(path, params = {}) {
  const made = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(params)) {
    if (value !== null && value !== undefined && value !== "") made.searchParams.set(name, value);
  }
  return made;
}

const headers = (more = {}) => (token ? { ...more, Authorization: `Bearer ${token}` } : more);

async function refusal(response) {
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // Not JSON: a proxy's page, most likely. The status says enough.
  }
  const said = problem.detail || problem.title || `The server answered ${response.status}.`;
  return new Refused(response.status, said, Array.isArray(problem.errors) ? problem.errors : []);
}

async function newToken() {
  if (declined) return null;
  asking ??= wiring.askToken(hasToken() ? "rejected" : "needed").finally(() => (asking = null));
  const given = await asking;
  if (!given) declined = true;
  return given;
}

async function send(method, path, { params, body } = {}) {
  for (;;) {
    const used = token;
    let response;
    try {
      response = await fetch(url(path, params), {
        method,
        headers: headers(body === undefined ? {} : { "Content-Type": "application/json" }),
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: AbortSignal.timeout(TIMEOUT_MS),
        cache: "no-store",
      });
    } catch (error) {
      wiring.heard(false);
      const slow = error.name === "TimeoutError";
      throw new Refused(0, slow ? "The server took too long to answer." : "The server does not answer.");
    }
    wiring.heard(true);
    if (response.status === 401) {
      if (used !== token || (await newToken())) continue;
    }
    if (!response.ok) throw await refusal(response);
    return response.status === 204 ? null : response.json();
  }
}

const admin = (path) => "admin/v1/" + path;
export const get = (path, params) => send("GET", admin(path), { params });
export const post = (path, body = {}) => send("POST", admin(path), { body });
export const patch = (path, body) => send("PATCH", admin(path), { body });
export const remove = (path) => send("DELETE", admin(path));
export const version = () => send("GET", "version");

/** /readyz, whose 503 is an answer too: {status, reasons}. */
export async function readiness() {
  const response = await fetch(url("readyz"), { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  return response.json();
}

/**
 * Read server-sent events until the signal aborts or the stream ends: take(event) for each. By fetch, not EventSource,
 * which cannot send the Authorization header.
 */
export async function listen(after, take, signal) {
  const given = headers({ Accept: "text/event-stream", "Last-Event-ID": String(after) });
  const response = await fetch(url(admin("events"), { after }), { headers: given, signal, cache: "no-store" });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const messages = (rest + value).split(/\r?\n\r?\n/);
    rest = messages.pop();
    for (const message of messages) {
      const data = message
        .split(/\r?\n/)
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart())
        .join("\n");
      if (data) take(JSON.parse(data));
    }
  }
}
