// What asks the user, and what tells them something in passing.

import { setToken } from "./api.js";
import { $, h, say, show } from "./dom.js";

const TOLD_MS = 7000;

/** Say something aloud to who cannot see it. */
export const announce = (sentence) => say($("#announcer"), sentence);

/** A sentence at the corner, for a while; as an error it stays longer. */
export function tell(sentence, bad = false) {
  const toast = h("div", { class: `toast ${bad ? "bad" : ""}` }, sentence);
  $("#toasts").append(toast);
  announce(sentence);
  setTimeout(() => toast.remove(), bad ? TOLD_MS * 2 : TOLD_MS);
}

/** Ask before something that cannot be undone. Resolves with whether to do it. */
export function confirm({ title, text, yes }) {
  const dialog = $("#confirm-dialog");
  say($("#confirm-title"), title);
  say($("#confirm-text"), text);
  say($("#confirm-yes"), yes);
  dialog.showModal();
  $("#confirm-no").focus();
  return new Promise((resolve) => {
    let answer = false;
    $("#confirm-yes").onclick = () => {
      answer = true;
      dialog.close();
    };
    $("#confirm-no").onclick = () => dialog.close();
    dialog.onclose = () => resolve(answer);
  });
}

const WHY = {
  needed: ["A token is needed", ""],
  rejected: ["Another token is needed", "The server does not take the token that was in use."],
  change: ["Use another token", ""],
};

/** Ask for a token: "needed", "rejected" or "change". Resolves with it, or with null where the user would rather not. */
export function askToken(why) {
  const dialog = $("#token-dialog");
  const input = $("#token-input");
  input.value = "";
  const [title, error] = WHY[why];
  say($("#token-title"), title);
  say($("#token-error"), error);
  show($("#token-error"), error !== "");
  show($("#token-forget"), why !== "needed");
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    let answer = null;
    const end = (value) => {
      answer = value;
      setToken(value);
      dialog.close();
    };
    $("#token-form").onsubmit = (event) => {
      event.preventDefault();
      if (input.value.trim()) end(input.value.trim());
    };
    $("#token-cancel").onclick = () => dialog.close();
    $("#token-forget").onclick = () => end(null);
    dialog.onclose = () => resolve(answer);
  });
}
