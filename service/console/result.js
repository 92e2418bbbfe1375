// What a backend found for a text, and how far a job is.

import { isFinal } from "./api.js";
import { badge, counting, h } from "./dom.js";
import { problemView } from "./problem.js";
import { clock, duration, flipping, moment, percent, ticking } from "./words.js";

const STATES = ["queued", "submitted", "running"];
const MEANINGS = {
  queued: "waits in this service",
  submitted: "waits at the provider",
  running: "on the device",
};

/**
 * Label, probabilities and, from hardware, what there is to know of the shots.
 * @param labels the task's, so that two columns list them in the same order
 */
export function resultView(result, labels = []) {
  const scores = inOrder(result.scores, labels);
  return h("div", { class: "result" },
    h("p", { class: "answer" },
      h("strong", { class: "label" }, result.label), " ",
      h("span", { class: "score" }, percent(result.score)), " ", facts(result)),
    h("ul", { class: "scores", "aria-label": "Probabilities" },
      scores.map(({ label, score }) => h("li", { class: label === result.label ? "best" : null },
        h("span", { class: "name" }, label), bar(score), h("span", { class: "number" }, score.toFixed(4))))),
    result.truncated
      ? h("p", { class: "hint" }, "The text was longer than the embedder reads; its end was cut.") : null,
    result.flip_probability === undefined ? null
      : h("p", { class: "flip" }, flipping(result.flip_probability, scores.length)));
}

/** Names and values on one line. */
export function factsView(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** How far a job is: each state with when it began and how long it took, why it is held, when it will be done. */
export function jobView(job) {
  const entered = Object.fromEntries(job.changes.map((change) => [change.status, change.at]));
  const ended = job.changes.find((change) => isFinal(change));
  const states = [...STATES, ended?.status ?? "done"].filter((state) => !ended || entered[state]);
  return h("div", { class: "job" },
    h("ol", { class: "steps", "aria-label": "Progress" }, states.map((state) => step(state, job, entered))),
    job.held ? held(job.held) : null,
    job.eta && !job.held && !isFinal(job) ? h("p", { class: "hint" }, `Expected at ${clock(job.eta)}, `,
      counting("down", job.eta, (seconds) => (seconds > 0 ? `in ${ticking(seconds)}` : "any moment")), ".") : null,
    job.error ? problemView(job.error) : null);
}

/** Seconds from a job's creation to its end; null before. */
export function took(job) {
  const ended = job.changes.find((change) => isFinal(change));
  return ended ? (Date.parse(ended.at) - Date.parse(job.created_at)) / 1e3 : null;
}

function step(state, job, entered) {
  const at = entered[state];
  const index = job.changes.findIndex((change) => change.status === state);
  const next = job.changes[index + 1];
  const isNow = job.status === state && !isFinal(job);
  let time = null;
  if (isNow) time = counting("up", at, ticking);
  else if (at && next) time = duration((Date.parse(next.at) - Date.parse(at)) / 1e3);
  return h("li", { class: `step ${at ? "passed" : "ahead"} ${state}`, "aria-current": isNow ? "step" : null },
    h("span", { class: "name" }, state), h("span", { class: "time" }, time),
    h("span", { class: "at" }, at ? clock(at) : MEANINGS[state] ?? ""));
}

function held(hold) {
  return h("div", { class: "held", role: "status" },
    badge("held", "warn"), h("strong", {}, hold.reason.replaceAll("-", " ")),
    h("p", {}, hold.detail),
    h("p", {}, `Tried again at ${clock(hold.until)}, `,
      counting("down", hold.until, (seconds) => (seconds > 0 ? `in ${ticking(seconds)}` : "now")), "."));
}

function facts(result) {
  if (result.device === undefined) return [];
  return [
    result.emulated
      ? badge("emulated", "warn", "An emulator gave the counts, and no chip") : badge(result.device, "", "The device"),
    badge(`${result.shots.toLocaleString("en")} shots`),
    result.cached ? badge("cached", "", `The counts were there before; measured ${moment(result.executed_at)}`) : null,
    result.mitigated
      ? badge("readout corrected") : badge("not corrected", "warn", "Readout errors are not known yet"),
  ].filter(Boolean);
}

export function hardwarePairs(result) {
  return [
    ["device", result.device],
    ["calibration", result.calibration_id],
    ["ran", moment(result.executed_at)],
  ];
}

function inOrder(scores, labels) {
  const place = (score) => (labels.includes(score.label) ? labels.indexOf(score.label) : labels.length);
  return [...scores].sort((a, b) => place(a) - place(b));
}

function bar(share) {
  const fill = h("span", { class: "fill" });
  fill.style.setProperty("inline-size", `${share * 100}%`);
  return h("span", { class: "track", "aria-hidden": "true" }, fill);
}
