// Each task's default backend and shadow share, for those who may change them.

import { get } from "./api.js";
import { announce, byId, h } from "./dom.js";
import { errorView } from "./problem.js";
import { moment } from "./words.js";

/** Show the switch of every task, or why they cannot be shown. */
export async function showSwitches(tasks) {
  const root = byId("switches");
  try {
    const found = await Promise.all(tasks.map(({ task }) => get(address(task), { quiet: true })));
    root.replaceChildren(...tasks.map(({ task }, index) => switchForm(task, found[index])));
  } catch (error) {
    root.replaceChildren(refusal(error));
  }
}

/** Show why the tasks that there are to switch could not be listed. */
export function refuseSwitches(error) {
  const view = unasked(error);
  if (isForbidden(error)) view.append(h("p", {}, "Listing tasks needs a key with the scope classify."));
  byId("switches").replaceChildren(view);
}

function address(task) {
  return `/admin/tasks/${encodeURIComponent(task)}/backend`;
}

function refusal(error) {
  if (error.status === 404 || error.status === 501)
    return h("p", { class: "absent" }, `There is nothing to switch here. ${error.document.detail ?? ""}`);
  const view = unasked(error);
  if (isForbidden(error)) view.append(h("p", {}, "Switching needs a key with the scope admin."));
  return view;
}

/** An error as a note instead of an alert: nobody has asked for this part yet. */
function unasked(error) {
  const view = errorView(error);
  view.setAttribute("role", "note");
  return view;
}

function isForbidden({ status }) {
  return status === 401 || status === 403;
}

function switchForm(task, now) {
  const backend = h("select", { id: `backend-${task}` }, h("option", {}, "simulator"), h("option", {}, "baihua"));
  const limits = { type: "number", min: 0, max: 100, step: "any", inputmode: "decimal" };
  const share = h("input", { id: `shadow-${task}`, ...limits });
  const said = h("div", { class: "said", role: "status" });
  const origin = h("span", { class: "hint" });
  const save = h("button", { type: "submit" }, "Save");
  const show = (state) => {
    backend.value = state.backend;
    share.value = state.shadow_percent ?? 0;
    origin.textContent = state.since ? `since ${moment(state.since)}, by ${state.by}` : "from the settings";
    limit();
  };
  const limit = () => {
    share.disabled = backend.value === "baihua"; // all of it goes to hardware then
    if (share.disabled) share.value = 0;
  };
  backend.addEventListener("change", limit);
  show(now);
  const submit = async (event) => {
    event.preventDefault();
    if (save.hasAttribute("aria-disabled")) return;
    const isSimulator = backend.value === "simulator";
    const body = { backend: backend.value, ...(isSimulator && { shadow_percent: Number(share.value || 0) }) };
    save.setAttribute("aria-disabled", "true"); // really disabled, it would lose the focus
    try {
      show(await get(address(task), { method: "PUT", body }));
      said.replaceChildren("Saved.");
      announce(`${task} is answered by ${backend.value}.`);
    } catch (error) {
      said.replaceChildren(errorView(error));
    } finally {
      save.removeAttribute("aria-disabled");
    }
  };
  return h("form", { class: "switch", "aria-label": `Backend of ${task}`, submit, novalidate: true },
    h("h3", {}, task),
    h("div", { class: "field inline" }, h("label", { for: backend.id }, "Default backend"), backend),
    h("div", { class: "field inline" }, h("label", { for: share.id }, "Shadow, %"), share),
    save, origin, said);
}
