// A problem as a reader sees it, and the dialog for the API key that some problems ask for.

import { key } from "./api.js";
import { byId, counting, h } from "./dom.js";
import { ticking } from "./words.js";

/**
 * A problem document in words.
 * @param document with title and detail; a job's error is one too
 * @param extra `status`, `retryAt` and `retry`, which offers to try again
 */
export function problemView(document, { status = document.status, retryAt = null, retry = null } = {}) {
  const errors = Array.isArray(document.errors) && document.errors.length > 1 ? document.errors : [];
  return h("div", { class: "problem", role: "alert" },
    h("strong", {}, document.title ?? "It failed"),
    status ? h("span", { class: "code" }, String(status)) : null,
    document.detail ? h("p", {}, document.detail) : null,
    errors.length ? h("ul", {}, errors.map((error) => h("li", {}, `${place(error)} ${error.detail}`))) : null,
    retryAt ? h("p", { class: "retry" }, counting("down", new Date(retryAt).toISOString(), when)) : null,
    h("div", { class: "tools" },
      [401, 403].includes(status)
        ? h("button", { type: "button", click: () => askForKey() }, "Enter an API key") : null,
      retry ? h("button", { type: "button", click: retry }, "Try again") : null,
      document.job ? h("a", { href: `#job=${document.job}` }, "The job") : null));
}

/** A caught error likewise; what is no Problem is a fault of this page. */
export function errorView(error, retry = null) {
  if (error.document) return problemView(error.document, { status: error.status, retryAt: error.retryAt, retry });
  console.error(error);
  return problemView({ title: "This page failed", detail: String(error) }, { retry });
}

/** Open the dialog, with the reason if there is one. */
export function askForKey(problem = null) {
  const dialog = byId("key-dialog");
  if (problem) byId("key-why").textContent = `${problem.document.title}. ${problem.document.detail ?? ""}`;
  byId("key").value = key.get();
  if (dialog.open) return;
  // Where nothing was in focus, as when it opens by itself, the browser has nothing to give the focus back to.
  if (document.activeElement === document.body)
    dialog.addEventListener("close", () => byId("text").focus(), { once: true });
  dialog.showModal();
}

/** Connect the dialog; `changed` is called with a key that is new. */
export function startKey(changed) {
  const use = (value) => {
    key.set(value);
    byId("key-open").textContent = value ? "API key set" : "API key";
    byId("key-dialog").close();
    changed();
  };
  byId("key-open").textContent = key.get() ? "API key set" : "API key";
  byId("key-open").addEventListener("click", () => askForKey());
  byId("key-forget").addEventListener("click", () => use(""));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    use(byId("key").value.trim());
  });
  document.addEventListener("key-needed", (event) => askForKey(event.detail));
}

function place(error) {
  return error.pointer ?? error.parameter ?? "";
}

function when(seconds) {
  return seconds > 0 ? `Try again in ${ticking(seconds)}.` : "You may try again now.";
}
