// One text on both backends at once, side by side.

import { follow, get, isFinal, open } from "./api.js";
import { announce, byId, counting, h } from "./dom.js";
import { hardwareExpvals, showExpvals } from "./expvals.js";
import { record } from "./latency.js";
import { errorView } from "./problem.js";
import { factsView, hardwarePairs, jobView, resultView, took } from "./result.js";
import { duration, percent, ticking } from "./words.js";
import { cancelJob } from "./jobs.js";

const MOST_QUOTED = 200;

let running = new AbortController();
let tasks = [];

/** Connect the form; `asked` is called with task and text of each run, `ended` after a job's end. */
export function startTryout({ asked, ended }) {
  const form = byId("try-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run(asked, ended);
  });
  document.addEventListener("keydown", (event) => {
    const isRun = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    const within = event.target.closest("form");
    if (!isRun || (within && within !== form) || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    form.requestSubmit();
  });
  byId("text").addEventListener("input", () => complain(""));
}

/** The tasks there are to choose from. */
export function offerTasks(found) {
  tasks = found;
  const chosen = byId("task").value;
  byId("task").replaceChildren(...found.map(({ task }) => h("option", {}, task)));
  if (found.some(({ task }) => task === chosen)) byId("task").value = chosen;
}

async function run(asked, ended) {
  const text = byId("text").value;
  if (!text.trim()) {
    complain("Type a text first.");
    byId("text").focus();
    return;
  }
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const task = byId("task").value;
  const labels = tasks.find((one) => one.task === task)?.labels ?? [];
  const quoted = text.length > MOST_QUOTED ? `${text.slice(0, MOST_QUOTED)}…` : text;
  byId("asked").replaceChildren(h("span", { class: "hint" }, `${task} of`), ` “${quoted}”`);
  byId("verdict").textContent = "";
  showExpvals(byId("expvals"), {});
  announce("Running on both backends.");
  asked(task, text);
  const query = byId("shots").value ? `&shots=${encodeURIComponent(byId("shots").value)}` : "";
  const [exact, measured] = await Promise.all([
    attempt(signal, "simulator", (column) => onSimulator(column, task, text, labels, signal)),
    attempt(signal, "baihua", (column) => onHardware(column, task, text, labels, query, signal)),
  ]);
  if (signal.aborted) return;
  byId("verdict").textContent = verdict(exact, measured);
  if (measured) {
    showExpvals(byId("expvals"), { exact: exact?.expvals, ...hardwareExpvals(measured) });
  }
  announce(said("Simulator", exact) + said("Baihua", measured) + byId("verdict").textContent);
  ended();
}

/** A backend's result, or null: then its column says why. */
async function attempt(signal, id, ask) {
  const column = byId(id);
  const body = h("div", { class: "body" }, h("p", { class: "waiting" }, "Waiting for the answer, ",
    counting("up", new Date().toISOString(), ticking)));
  column.querySelector(".body")?.remove();
  column.append(body);
  column.setAttribute("aria-busy", "true");
  try {
    return await ask(body);
  } catch (error) {
    if (!signal.aborted) body.replaceChildren(failed(error));
    return null;
  } finally {
    if (!signal.aborted) column.removeAttribute("aria-busy");
  }
}

async function onSimulator(column, task, text, labels, signal) {
  const begun = performance.now();
  const path = `/classify/${encodeURIComponent(task)}?backend=simulator&expvals=true`;
  const answer = await get(path, { method: "POST", body: { inputs: text }, signal });
  const seconds = (performance.now() - begun) / 1e3;
  record("simulator", seconds);
  const [result] = answer.results;
  column.replaceChildren(
    resultView(result, labels),
    factsView([...timing(answer.timing, seconds), ["bundle", answer.bundle]]));
  return result;
}

async function onHardware(column, task, text, labels, query, signal) {
  const begun = performance.now();
  const path = `/classify/${encodeURIComponent(task)}?backend=baihua${query}`;
  const response = await open(path, { method: "POST", body: { inputs: text }, signal });
  const answer = await response.json();
  if (response.status === 200) {
    const seconds = (performance.now() - begun) / 1e3;
    record("cached", seconds);
    const [result] = answer.results;
    column.replaceChildren(resultView(result, labels),
      factsView([...timing(answer.timing, seconds), ...hardwarePairs(result), ["bundle", answer.bundle]]));
    return result;
  }
  return onJob(column, answer, labels, begun, signal);
}

async function onJob(column, first, labels, begun, signal) {
  const progress = h("div", {}, jobView(first));
  const connection = h("p", { class: "hint", role: "status" });
  const refused = h("div", {});
  const cancel = h("button", { type: "button", click: () => cancelJob(first, refused) }, "Cancel the job");
  const link = h("a", { href: `#job=${first.id}` }, `Job ${first.id.slice(0, 8)}`);
  column.replaceChildren(progress, connection, h("div", { class: "tools" }, link, cancel), refused);
  const show = (job) => {
    connection.replaceChildren();
    progress.replaceChildren(jobView(job));
    cancel.hidden = isFinal(job);
    announce(`Baihua: the job is ${job.status}${job.held ? `, held: ${job.held.reason}` : ""}.`);
  };
  const lost = (problem, at) => connection.replaceChildren(`${problem.document.title}; followed again `,
    counting("down", at, (seconds) => (seconds > 0 ? `in ${ticking(seconds)}` : "now")), ".");
  const job = isFinal(first) ? first : await follow(first.id, { signal, onJob: show, onLost: lost });
  show(job);
  if (job.status === "done") record("job", (performance.now() - begun) / 1e3);
  const result = job.results?.[0] ?? null;
  if (result)
    column.prepend(
      resultView(result, labels),
      factsView([["job", duration(took(job))], ...hardwarePairs(result), ["bundle", job.bundle]]));
  return result;
}

function timing({ embed_ms, circuit_ms, total_ms }, seconds) {
  const times = [["embed", embed_ms], ["circuit", circuit_ms], ["total", total_ms], ["seen here", seconds * 1e3]];
  return times.map(([name, milliseconds]) => [name, duration(milliseconds / 1e3)]);
}

function failed(error) {
  // Not an error of the user's: this service just has no hardware.
  if (error.status === 501) {
    const { title, detail } = error.document;
    return h("div", { class: "absent" }, h("strong", {}, title), h("p", {}, detail));
  }
  // The same request would be refused again for what is wrong with it, and may succeed after any other failure.
  const mayPass = error.status < 400 || error.status === 429 || error.status >= 500;
  return errorView(error, mayPass ? () => byId("try-form").requestSubmit() : null);
}

function verdict(exact, measured) {
  if (!exact || !measured) return "";
  const differences = exact.scores.map(({ label, score }) =>
    Math.abs(score - (measured.scores.find((one) => one.label === label)?.score ?? 0)));
  const apart = `probabilities differ by at most ${Math.max(...differences).toFixed(3)}.`;
  return exact.label === measured.label ? `Both say ${exact.label}; ${apart}`
    : `They disagree: the simulator says ${exact.label}, baihua ${measured.label}; ${apart}`;
}

function said(name, result) {
  return result ? `${name}: ${result.label}, ${percent(result.score)}. ` : `${name}: no result. `;
}

function complain(text) {
  byId("text-error").textContent = text;
  byId("text").setAttribute("aria-invalid", String(Boolean(text)));
}
