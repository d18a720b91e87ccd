// @ts-check
// The charts, drawn by Plotly in the page's colours.

import { figure, named, word } from "./words.js";

/** @type {any} */
const plotly = () => /** @type {any} */ (window).Plotly;

const carrierColours = {
  electricity: "#4cc2b0", natural_gas: "#d58a5c", heat: "#d9655c", steam: "#b79ad6", cooling: "#6aa9e9",
  compressed_air: "#93a7b5",
};

/** @param {string} name */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** @param {string} hex @param {number} alpha */
function faint(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

function layout() {
  const size = parseFloat(getComputedStyle(document.documentElement).fontSize);
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("text"), size: size * 0.86, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 8, r: 8, t: 6, b: 6 },
  };
}

const config = { displayModeBar: false, responsive: true };

/**
 * Energy or carbon from source to use. A storage stands on both sides, discharging on the left and
 * charging on the right, so that nothing runs in a circle.
 * @param {HTMLElement} at
 * @param {{nodes: any[], edges: any[]}} network
 * @param {Map<string, number | null>} amount by edge
 * @param {string} unit
 */
export function drawFlow(at, network, amount, unit) {
  const nodes = new Map(network.nodes.map((node) => [node.node, node]));
  /** @type {string[]} */
  const keys = [];
  /** @type {{label: string, colour: string}[]} */
  const shown = [];
  /** @param {string} id @param {"from" | "to"} end @param {string} carrier */
  const index = (id, end, carrier) => {
    const node = nodes.get(id);
    const split = node.kind === "storage";
    const key = split ? `${id}/${end}` : id;
    let place = keys.indexOf(key);
    if (place < 0) {
      place = keys.push(key) - 1;
      const side = split ? ` (${word(end === "from" ? "discharge" : "charge")})` : "";
      shown.push({ label: named(node.name) + side, colour: carrierColour(node.carrier ?? carrier) });
    }
    return place;
  };
  const link = { source: [], target: [], value: [], color: [], customdata: [] };
  const columns = /** @type {Record<string, any[]>} */ (link);
  for (const edge of network.edges) {
    const value = amount.get(edge.edge);
    if (!value || value <= 0) continue;
    columns.source.push(index(edge.from, "from", edge.carrier));
    columns.target.push(index(edge.to, "to", edge.carrier));
    columns.value.push(value);
    columns.color.push(faint(carrierColour(edge.carrier), 0.38));
    columns.customdata.push(`${figure(value)} ${unit}`);
  }
  at.dataset.links = String(columns.value.length);
  const trace = {
    type: "sankey", arrangement: "snap", valueformat: ",.0f", valuesuffix: ` ${unit}`,
    node: {
      label: shown.map((node) => node.label), color: shown.map((node) => node.colour),
      pad: 16, thickness: 13, line: { width: 0 }, hovertemplate: "%{label}<br>%{value}<extra></extra>",
    },
    link: {
      ...link, hovertemplate: "%{source.label} → %{target.label}<br>%{customdata}<extra></extra>",
    },
  };
  const annotations = columns.value.length ? [] : [{
    text: word("noFlow"), showarrow: false, x: 0.5, y: 0.5, xref: "paper", yref: "paper",
    font: { color: colour("muted") },
  }];
  const axis = { visible: false };
  plotly()?.react(at, [trace], { ...layout(), annotations, xaxis: axis, yaxis: axis }, config);
}

/** @param {string} carrier */
function carrierColour(carrier) {
  return /** @type {Record<string, string>} */ (carrierColours)[carrier] ?? "#93a7b5";
}

/**
 * Intensity over the day, a step a bucket, and the live estimate as a dot.
 * @param {HTMLElement} at
 * @param {{time: string, value: number | null}[]} steps times in the plant's zone
 * @param {{time: string, value: number} | null} now
 * @param {[string, string]} range
 */
export function drawIntensity(at, steps, now, range) {
  const line = {
    type: "scatter", mode: "lines", x: steps.map((step) => step.time), y: steps.map((step) => step.value),
    line: { color: colour("carbon"), width: 2, shape: "hv" }, fill: "tozeroy",
    fillcolor: faint(colour("carbon"), 0.14), connectgaps: false,
    hovertemplate: "%{x|%H:%M}  %{y:.4f} kgCO₂e/kWh<extra></extra>",
  };
  const dot = {
    type: "scatter", mode: "markers+text", x: now ? [now.time] : [], y: now ? [now.value] : [],
    marker: { size: 9, color: "rgba(0,0,0,0)", line: { width: 2, color: colour("carbon") } },
    text: [word("estimate")], textposition: "top center", cliponaxis: false,
    hovertemplate: `%{y:.4f} kgCO₂e/kWh (${word("estimate")})<extra></extra>`,
  };
  const grid = { gridcolor: colour("line"), zeroline: false, tickfont: { color: colour("muted") } };
  at.dataset.steps = String(steps.length);
  plotly()?.react(at, [line, dot], {
    ...layout(), margin: { l: 46, r: 20, t: 12, b: 30 }, showlegend: false,
    xaxis: { ...grid, range, type: "date", tickformat: "%H:%M", nticks: 9, ticklabelstandoff: 5 },
    yaxis: { ...grid, rangemode: "tozero", nticks: 5, tickformat: ".2f" },
  }, config);
}

/**
 * Stacked bars by month, one colour a source of emissions.
 * @param {HTMLElement} at
 * @param {string[]} months
 * @param {{name: string, months: (number | null)[]}[]} lines in t
 */
export function drawMonths(at, months, lines) {
  const colours = ["#e2a95a", "#4cc2b0", "#6aa9e9", "#b79ad6", "#d9655c", "#93a7b5", "#c3cf6a", "#d58a5c"];
  const traces = lines.map((line, i) => ({
    type: "bar", name: line.name, x: months, y: line.months, marker: { color: colours[i % colours.length] },
    hovertemplate: `%{x}  %{y:.2f} tCO₂e<extra>${line.name}</extra>`,
  }));
  const grid = { gridcolor: colour("line"), tickfont: { color: colour("muted") } };
  at.dataset.bars = String(traces.length);
  plotly()?.react(at, traces, {
    ...layout(), barmode: "relative", margin: { l: 56, r: 8, t: 8, b: 30 }, legend: { orientation: "h", y: -0.14 },
    xaxis: { ...grid, type: "category" }, yaxis: { ...grid, title: { text: "tCO₂e" } },
  }, config);
}
