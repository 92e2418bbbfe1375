// How long answers took, by backend: a strip of marks on a logarithmic time axis.

import { isFinal, get } from "./api.js";
import { byId, h, s } from "./dom.js";
import { took } from "./result.js";
import { duration, median, plural } from "./words.js";

const STORED = "qd-latency";
const MOST_TRIES = 500;
const LANES = [
  ["simulator", "simulator"],
  ["cached", "baihua, cached"],
  ["job", "baihua, job"],
  ["recent", "baihua, recent jobs"],
];
const LANE = 52;
const SIDE = 14;
// From 10^-3 s on; a job that took longer than the last would have met its deadline (30 days) before.
const FIRST_DECADE = -3;
const DECADES = ["1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s", "10³ s", "10⁴ s", "10⁵ s", "10⁶ s", "10⁷ s"];

let tries = [];
let recent = [];

export function startLatency() {
  tries = stored();
  byId("latency-clear").addEventListener("click", () => keep([]));
  new ResizeObserver(draw).observe(byId("latency-plot"));
}

/** Note a try of this session. */
export function record(lane, seconds) {
  keep([...tries, { lane, seconds }].slice(-MOST_TRIES));
}

/** Read the recent jobs; quietly, as the list of jobs says what is wrong. */
export async function readRecent() {
  try {
    const { jobs } = await get("/jobs?status=done&limit=100", { quiet: true });
    recent = jobs.filter(isFinal).map(took);
  } catch {
    recent = [];
  }
  draw();
}

function keep(now) {
  tries = now;
  sessionStorage.setItem(STORED, JSON.stringify(now));
  draw();
}

function stored() {
  try {
    const found = JSON.parse(sessionStorage.getItem(STORED)) ?? [];
    return found.filter(({ lane, seconds }) => typeof lane === "string" && seconds > 0);
  } catch {
    return [];
  }
}

function draw() {
  const root = byId("latency-plot");
  const width = root.clientWidth;
  const lanes = LANES.map(([id, name]) => ({
    id,
    name,
    values: id === "recent" ? recent : tries.filter((one) => one.lane === id).map((one) => one.seconds),
  }));
  const all = lanes.flatMap((lane) => lane.values).filter((seconds) => seconds > 0);
  if (!all.length || width <= 0) {
    root.replaceChildren(h("p", { class: "hint" }, "Nothing measured yet: run a text."));
    return;
  }
  const low = FIRST_DECADE;
  const high = Math.max(Math.ceil(Math.log10(Math.max(...all))), 0);
  const share = (seconds) => (Math.log10(Math.max(seconds, 10 ** low)) - low) / (high - low);
  const x = (seconds) => SIDE + share(seconds) * (width - 2 * SIDE);
  const bottom = LANES.length * LANE + 4;
  const height = bottom + 38;
  root.replaceChildren(s("svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary(lanes) },
    axis(low, high, x, bottom, width), lanes.map((lane, index) => strip(lane, index * LANE, x, width))));
}

function axis(low, high, x, bottom, width) {
  const marks = [];
  for (let decade = low; decade <= high; decade += 1) {
    const at = x(10 ** decade);
    marks.push(s("line", { class: "grid", x1: at, x2: at, y1: 0, y2: bottom }));
    const anchor = decade === low ? "start" : decade === high ? "end" : "middle";
    const start = anchor === "start" ? at - SIDE + 2 : anchor === "end" ? at + SIDE - 2 : at;
    const label = DECADES[decade - FIRST_DECADE];
    marks.push(s("text", { class: "tick", x: start, y: bottom + 14, "text-anchor": anchor }, label));
    for (let step = 2; step < 10 && decade < high; step += 1) {
      const minor = x(step * 10 ** decade);
      marks.push(s("line", { class: "grid", x1: minor, x2: minor, y1: bottom - 4, y2: bottom }));
    }
  }
  const middle = { x: width / 2, y: bottom + 32, "text-anchor": "middle" };
  return [...marks, s("text", { class: "tick", ...middle }, "time to the answer, logarithmic")];
}

function strip({ id, name, values }, top, x, width) {
  const y = top + 34;
  const marks = values.map((seconds, index) =>
    // Spread by a fixed sequence, so that a mark stays where it is when others come.
    s("circle", { class: "mark", cx: x(seconds), cy: y + (((index * 0.618) % 1) - 0.5) * 14, r: 3.5 }));
  const middle = values.length ? median(values) : null;
  return s("g", { class: `lane ${id}` },
    s("line", { class: "zero", x1: SIDE, x2: width - SIDE, y1: y, y2: y }),
    s("text", { class: "lane-name", x: SIDE, y: top + 15 }, name),
    s("text", { class: "lane-fact", x: width - SIDE, y: top + 15, "text-anchor": "end" },
      middle === null ? "none" : `median ${duration(middle)}, n = ${values.length}`),
    marks,
    middle === null ? null : s("line", { class: "median", x1: x(middle), x2: x(middle), y1: y - 11, y2: y + 11 }));
}

function summary(lanes) {
  const parts = lanes.map(({ name, values }) => {
    if (!values.length) return `${name}: none`;
    return `${name}: median ${duration(median(values))} of ${plural(values.length, "answer")}`;
  });
  return `Latency on a logarithmic time axis. ${parts.join("; ")}.`;
}
