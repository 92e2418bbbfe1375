// <Z> of every qubit as a table of diverging bars: hardware as measured and corrected, and exact where it is known.

import { h, s } from "./dom.js";
import { signed } from "./words.js";

/** What a hardware result has of it. */
export function hardwareExpvals(result) {
  return { raw: result.expvals_raw, corrected: result.mitigated ? result.expvals : undefined };
}

/**
 * Fill the panel with one row a qubit; empty it where hardware has found nothing.
 * @param found `{exact, raw, corrected}`, each a list of values in [-1, 1] or undefined
 */
export function showExpvals(panel, { exact, raw, corrected }) {
  const series = [
    { name: "exact", values: exact },
    { name: "raw", values: raw },
    { name: "corrected", values: corrected },
  ].filter((one) => one.values);
  panel.hidden = !series.length;
  if (panel.hidden) return panel.replaceChildren();
  const qubits = series[0].values.map((_, qubit) => qubit);
  return panel.replaceChildren(
    h("h3", {}, "Expectation values ", h("span", { class: "hint" }, "⟨Z⟩ of every qubit, −1 to +1")),
    h("p", { class: "hint legend" },
      series.map(({ name }) => [h("span", { class: `swatch ${name}` }), `${legend(name)} `]),
      deviation(exact, raw, corrected)),
    h("table", { class: "expvals" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Qubit"),
        h("th", { scope: "col", class: "axis" }, h("span", {}, "−1"), h("span", {}, "0"), h("span", {}, "+1")),
        series.map(({ name }) => h("th", { scope: "col", class: "number" }, name)))),
      h("tbody", {}, qubits.map((qubit) => h("tr", {}, h("th", { scope: "row" }, `q${qubit}`),
        h("td", { class: "plot" }, bars(series.map(({ name, values }) => [name, values[qubit]]))),
        series.map(({ values }) => h("td", { class: "number" }, signed(values[qubit]))))))));
}

function legend(name) {
  return { exact: "exact (simulator)", raw: "as measured", corrected: "corrected for readout" }[name];
}

/** How far hardware is from exact, if that is known. */
function deviation(exact, raw, corrected) {
  if (!exact || !raw) return null;
  const mean = (values) => values.reduce((sum, value, qubit) => sum + Math.abs(value - exact[qubit]), 0) / exact.length;
  const after = corrected ? `, ${mean(corrected).toFixed(3)} corrected` : "";
  return h("span", { class: "deviation" }, `Mean distance from exact: ${mean(raw).toFixed(3)} as measured${after}.`);
}

function bars(values) {
  const chart = s("svg", { viewBox: "-1 0 2 14", preserveAspectRatio: "none", "aria-hidden": "true" },
    [-1, -0.5, 0.5, 1].map((x) => line("grid", x, 0, 14)));
  const solid = values.filter(([name]) => name !== "exact");
  solid.forEach(([name, value], index) => {
    const height = 10 / solid.length;
    const box = { x: Math.min(value, 0), width: Math.abs(value), y: 2 + index * height, height: height - 0.6 };
    chart.append(s("rect", { class: name, ...box }));
  });
  chart.append(line("zero", 0, 0, 14));
  for (const [name, value] of values) if (name === "exact") chart.append(line("exact", value, 0, 14));
  return chart;
}

function line(name, x, top, bottom) {
  return s("line", { class: name, x1: x, x2: x, y1: top, y2: bottom, "vector-effect": "non-scaling-stroke" });
}
