// Connects the parts of the page.

import { get } from "./api.js";
import { showCircuit, startCircuit } from "./circuit.js";
import { byId } from "./dom.js";
import { offerJobTasks, readJobs, startJobs } from "./jobs.js";
import { readRecent, startLatency } from "./latency.js";
import { refuseSwitches, showSwitches } from "./operate.js";
import { errorView, startKey } from "./problem.js";
import { offerTasks, startTryout } from "./tryout.js";

const READY_MILLISECONDS = 15_000;

for (const button of document.querySelectorAll("dialog [data-close]"))
  button.addEventListener("click", () => button.closest("dialog").close());

startKey(readAll);
startLatency();
startJobs();
startCircuit(() => byId("text").value);
startTryout({
  asked: (task, text) => showCircuit(task, text),
  ended: () => Promise.all([readRecent(), readJobs({ quiet: true })]),
});
byId("task").addEventListener("change", () => showCircuit(byId("task").value, byId("text").value));
readAll();
setInterval(readReady, READY_MILLISECONDS);

/** All that the page shows before anything is run; again once there is another key. */
async function readAll() {
  readReady();
  const problem = byId("tasks-problem");
  try {
    const { tasks } = await get("/tasks");
    problem.replaceChildren();
    offerTasks(tasks);
    offerJobTasks(tasks);
    showCircuit(byId("task").value, byId("text").value);
    showSwitches(tasks);
    readJobs({ quiet: true });
    readRecent();
  } catch (error) {
    problem.replaceChildren(errorView(error, readAll));
    refuseSwitches(error);
  }
}

async function readReady() {
  const place = byId("ready");
  let said = { status: "away", parts: {} };
  try {
    said = await get("/readyz", { quiet: true });
  } catch (error) {
    if (error.status) said = { status: "not ready", parts: error.document.parts ?? {} };
  }
  // Without a mouse there is no title to look at: what is not ready is named.
  const lacking = Object.entries(said.parts).filter(([, state]) => state !== "ready");
  const text = lacking.length ? `${said.status}: ${lacking.map(([part]) => part).join(", ")}` : said.status;
  place.title = Object.entries(said.parts).map(([part, state]) => `${part}: ${state}`).join("\n");
  if (place.textContent === text) return; // it would be read out each time
  place.textContent = text;
  place.className = `badge ${said.status === "ready" ? "good" : "warn"}`;
}
