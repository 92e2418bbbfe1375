// Elements are made by hand and filled by textContent: nothing that comes from outside is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element; attributes that are null, undefined or false are left out, functions become listeners. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Likewise an SVG element. */
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

export const byId = (id) => document.getElementById(id);

/** Say something to those who do not see the page. */
export function announce(text) {
  byId("live").textContent = text;
}

export function badge(text, kind = "", title = undefined) {
  return h("span", { class: `badge ${kind}`, title }, text);
}

/** Whether the dialog was closed by its main button: `open(dialog, button)`. */
export function ask(dialog, yes) {
  return new Promise((resolve) => {
    const agree = () => dialog.close("yes");
    yes.addEventListener("click", agree);
    dialog.addEventListener(
      "close",
      () => {
        yes.removeEventListener("click", agree);
        resolve(dialog.returnValue === "yes");
      },
      { once: true },
    );
    dialog.returnValue = "";
    dialog.showModal();
  });
}

/** Text that counts up from a time, or down to one; ISO 8601. */
export function counting(direction, at, words = (seconds) => seconds) {
  const element = h("time", { datetime: at, "data-counting": direction });
  element.count = () => {
    const milliseconds = (direction === "up" ? 1 : -1) * (Date.now() - Date.parse(at));
    element.textContent = words(Math.max(milliseconds, 0) / 1000);
  };
  element.count();
  return element;
}

setInterval(() => {
  for (const element of document.querySelectorAll("[data-counting]")) element.count();
}, 200);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  const isThere = (child) => child !== null && child !== undefined && child !== false;
  element.append(...children.flat(Infinity).filter(isThere));
  return element;
}
