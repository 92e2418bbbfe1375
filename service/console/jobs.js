// The list of jobs, one job's details, and cancelling.

import { follow, get, isFinal } from "./api.js";
import { ask, badge, byId, counting, h } from "./dom.js";
import { hardwareExpvals, showExpvals } from "./expvals.js";
import { errorView } from "./problem.js";
import { factsView, hardwarePairs, jobView, resultView, took } from "./result.js";
import { duration, moment, plural, ticking } from "./words.js";

const LIVE_MILLISECONDS = 2_500;
const PAGE = 12;
const MOST_RESULTS = 20;

const rows = new Map();
let page = null; // the path of an older page; null is the newest
let next = null;
let reading = new AbortController();
let isReading = false;
let problemShown = "";
let pausedUntil = 0;

export function startJobs() {
  for (const id of ["jobs-state", "jobs-task"]) byId(id).addEventListener("change", () => turnTo(null));
  byId("jobs-refresh").addEventListener("click", () => readJobs());
  byId("jobs-first").addEventListener("click", () => turnTo(null));
  byId("jobs-next").addEventListener("click", () => turnTo(next));
  setInterval(() => {
    const isDue = !isReading && Date.now() >= pausedUntil && !document.hidden;
    if (isDue && byId("jobs-live").checked) readJobs({ quiet: true });
  }, LIVE_MILLISECONDS);
  startDetails();
}

export function offerJobTasks(tasks) {
  const chosen = byId("jobs-task").value;
  const any = h("option", { value: "" }, "any");
  byId("jobs-task").replaceChildren(any, ...tasks.map(({ task }) => h("option", {}, task)));
  byId("jobs-task").value = chosen;
}

/** Read the page of jobs that is shown. */
export async function readJobs({ quiet = false } = {}) {
  reading.abort();
  reading = new AbortController();
  const { signal } = reading;
  const filters = new URLSearchParams({ limit: PAGE });
  if (byId("jobs-state").value) filters.set("status", byId("jobs-state").value);
  if (byId("jobs-task").value) filters.set("task", byId("jobs-task").value);
  isReading = true;
  try {
    const list = await get(page ?? `/jobs?${filters}`, { signal, quiet });
    next = list.next ?? null;
    show(list.jobs);
    complain(null);
  } catch (error) {
    if (!signal.aborted) complain(error);
  } finally {
    if (!signal.aborted) isReading = false;
  }
}

/** Show why there is no list, once: an alert that came anew with each look would be read out each time. */
function complain(error) {
  // Without a key, the right to look or any hardware, looking again changes nothing.
  const isLasting = [401, 403, 501].includes(error?.status);
  pausedUntil = isLasting ? Infinity : error?.retryAt ?? 0;
  const said = error ? `${error.status} ${error.message}` : "";
  if (said !== problemShown) byId("jobs-problem").replaceChildren(...(error ? [errorView(error)] : []));
  problemShown = said;
}

/** Cancel a job once the user has confirmed it; `place` holds why it could not be, until it is tried again. */
export async function cancelJob(job, place) {
  place.replaceChildren();
  byId("confirm-text").textContent =
    `Job ${job.id.slice(0, 8)}, ${job.task}, ${plural(job.n_texts, "text")}. ` +
    "Circuits that no other job waits for leave the queue; what runs on the device already may still be charged.";
  if (!(await ask(byId("confirm"), byId("confirm-yes")))) return;
  try {
    await get(`/jobs/${encodeURIComponent(job.id)}`, { method: "DELETE" });
  } catch (error) {
    // Not where the list complains: its next look would take it away, or end for good.
    place.replaceChildren(errorView(error));
    return;
  }
  await readJobs();
}

function turnTo(path) {
  page = path;
  readJobs();
}

/** Rows stay the elements that they are, so that whoever has one in focus keeps it while others come and go. */
function show(jobs) {
  const shown = jobs.map((job) => {
    const row = rows.get(job.id) ?? newRow(job);
    row.update(job);
    return row;
  });
  rows.clear();
  jobs.forEach((job, index) => rows.set(job.id, shown[index]));
  const body = byId("jobs-rows");
  for (const old of [...body.children]) if (!shown.includes(old)) old.remove();
  shown.forEach((row, index) => {
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  byId("jobs-none").hidden = jobs.length > 0;
  byId("jobs-first").hidden = page === null;
  byId("jobs-next").hidden = next === null;
}

function newRow(first) {
  const state = h("td", { class: "state" });
  const time = h("td", { class: "number took" });
  const short = first.id.slice(0, 8);
  const attributes = { type: "button", "aria-label": `Cancel job ${short}`, click: () => cancelJob(first, byId("jobs-refused")) };
  const cancel = h("button", attributes, "Cancel");
  const row = h("tr", { "data-job": first.id },
    h("td", { class: "when" }, moment(first.created_at)),
    h("td", { class: "id" }, h("a", { href: `#job=${first.id}` }, short)),
    h("td", {}, first.task), state,
    h("td", { class: "number", "data-unit": first.n_texts === 1 ? "text" : "texts" }, String(first.n_texts)),
    h("td", { class: "number", "data-unit": "shots" }, first.shots.toLocaleString("en")),
    time, h("td", { class: "act" }, cancel));
  row.update = (job) => {
    const known = `${job.status} ${job.held?.reason ?? ""}`;
    cancel.hidden = isFinal(job);
    if (row.dataset.known === known) return;
    row.dataset.known = known;
    state.replaceChildren(badge(job.status, job.status), " ", job.held ? badge("held", "warn", job.held.detail) : "");
    time.replaceChildren(isFinal(job) ? duration(took(job)) : counting("up", job.created_at, ticking));
  };
  return row;
}

function startDetails() {
  const dialog = byId("details");
  let following = new AbortController();
  const look = () => {
    const id = /^#job=(\w+)$/.exec(location.hash)?.[1];
    following.abort();
    if (!id) return dialog.close(); // the browser's Back
    following = new AbortController();
    if (!dialog.open) dialog.showModal();
    details(id, following.signal);
  };
  window.addEventListener("hashchange", look);
  dialog.addEventListener("close", () => {
    following.abort();
    if (location.hash.startsWith("#job=")) history.replaceState(null, "", location.pathname + location.search);
  });
  look();
}

async function details(id, signal) {
  const body = byId("details-body");
  byId("details-title").textContent = `Job ${id.slice(0, 8)}`;
  body.replaceChildren(h("p", { class: "waiting" }, "Reading…"));
  try {
    const job = await get(`/jobs/${encodeURIComponent(id)}`, { signal });
    body.replaceChildren(...describe(job));
    const onJob = (now) => body.replaceChildren(...describe(now));
    if (!isFinal(job)) await follow(id, { signal, onJob, onLost: () => {} });
  } catch (error) {
    if (!signal.aborted) body.replaceChildren(errorView(error));
  }
}

function describe(job) {
  const results = job.results ?? [];
  const shown = results.slice(0, MOST_RESULTS).map((result, index) => h("section", {},
    results.length > 1 ? h("h3", {}, `Text ${index + 1}`) : null,
    result ? resultView(result) : h("p", { class: "hint" }, "It has no result."),
    result ? factsView(hardwarePairs(result)) : null));
  const expvals = h("div", {});
  if (results.length === 1 && results[0]) showExpvals(expvals, hardwareExpvals(results[0]));
  const seconds = took(job);
  return [
    factsView([
      ["id", job.id],
      ["task", job.task],
      ["bundle", job.bundle],
      ["created", moment(job.created_at)],
      ["took", seconds === null ? null : duration(seconds)],
      ["texts", String(job.n_texts)],
      ["shots", job.shots.toLocaleString("en")],
      ["provider's jobs", job.provider_jobs.join(", ") || null],
    ]),
    jobView(job), ...shown,
    results.length > MOST_RESULTS ? h("p", { class: "hint" }, `And ${results.length - MOST_RESULTS} more.`) : "",
    expvals,
  ];
}
