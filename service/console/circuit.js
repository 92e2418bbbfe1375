// The circuit's drawing, to zoom and to keep.

import { open } from "./api.js";
import { byId, h, s } from "./dom.js";
import { errorView } from "./problem.js";

const DRAWN = ["svg", "g", "title", "desc", "rect", "line", "circle", "path", "text"];
const ZOOM = { least: 0.25, most: 3, step: 1.25 };
const DOWNLOADS = {
  qasm2: ["circuit.qasm", "version=2", "qasm"],
  qasm3: ["circuit.qasm", "version=3", "qasm3.qasm"],
  svg: ["circuit.svg", "", "svg"],
};

const shown = { task: "", text: "", zoom: 1 };
let reading = new AbortController();

/** Connect the tools; `textNow` gives the text in the form. */
export function startCircuit(textNow) {
  byId("angles").addEventListener("change", () => showCircuit(shown.task, textNow()));
  byId("zoom-in").addEventListener("click", () => zoom(shown.zoom * ZOOM.step));
  byId("zoom-out").addEventListener("click", () => zoom(shown.zoom / ZOOM.step));
  byId("zoom-fit").addEventListener("click", fit);
  byId("drawing").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey) return; // the browser's own zoom
    if (event.key === "+" || event.key === "=") zoom(shown.zoom * ZOOM.step);
    else if (event.key === "-") zoom(shown.zoom / ZOOM.step);
    else if (event.key === "0") fit();
  });
  for (const button of document.querySelectorAll("[data-download]"))
    button.addEventListener("click", () => download(button.dataset.download, textNow()));
}

/** Draw the circuit of a task, with symbols or, if so chosen, with the angles of a text. */
export async function showCircuit(task, text) {
  const isBound = byId("angles").querySelector(":checked").value === "bound";
  Object.assign(shown, { task, text });
  reading.abort();
  reading = new AbortController();
  const { signal } = reading;
  const drawing = byId("drawing");
  if (isBound && !text.trim()) {
    drawing.replaceChildren(h("p", { class: "hint" }, "Type a text above to see its angles."));
    return;
  }
  try {
    const response = await open(path("circuit.svg", isBound ? `text=${encodeURIComponent(text)}` : ""), { signal });
    drawing.replaceChildren(copied(await response.text()));
    zoom(shown.zoom);
  } catch (error) {
    if (!signal.aborted) drawing.replaceChildren(errorView(error, () => showCircuit(task, text)));
  }
}

function path(name, query) {
  return `/tasks/${encodeURIComponent(shown.task)}/${name}${query && `?${query}`}`;
}

/**
 * The drawing as part of the page, so that it follows the page's theme: its shapes without its style sheet, which the
 * page's security policy would refuse, and without anything that is not a shape.
 */
function copied(source) {
  const bare = source.replace(/<style>[^]*?<\/style>/, "");
  const copy = (from) => {
    const element = s(from.nodeName);
    for (const { name, value } of from.attributes)
      if (!/^(on.*|style|xmlns)$/.test(name)) element.setAttribute(name, value);
    for (const child of from.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) element.append(child.data);
      else if (DRAWN.includes(child.nodeName)) element.append(copy(child));
    }
    return element;
  };
  return copy(new DOMParser().parseFromString(bare, "image/svg+xml").documentElement);
}

function zoom(level) {
  shown.zoom = Math.min(Math.max(level, ZOOM.least), ZOOM.most);
  byId("zoom-level").textContent = `${Math.round(shown.zoom * 100)} %`;
  const drawn = byId("drawing").querySelector("svg");
  if (!drawn) return;
  const [, , width, height] = drawn.getAttribute("viewBox").split(" ").map(Number);
  drawn.setAttribute("width", width * shown.zoom);
  drawn.setAttribute("height", height * shown.zoom);
}

function fit() {
  const drawn = byId("drawing").querySelector("svg");
  if (drawn) zoom(byId("drawing").clientWidth / Number(drawn.getAttribute("viewBox").split(" ")[2]));
}

async function download(kind, text) {
  const [name, version, suffix] = DOWNLOADS[kind];
  const bound = byId("angles").querySelector(":checked").value === "bound" && text.trim();
  const query = [version, bound && `text=${encodeURIComponent(text)}`].filter(Boolean).join("&");
  try {
    const response = await open(path(name, query));
    const address = URL.createObjectURL(await response.blob());
    h("a", { href: address, download: `${shown.task}-circuit.${suffix}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  } catch (error) {
    byId("drawing").prepend(errorView(error));
  }
}
