// @ts-check
// The live page: events move the figures of this second, requests the sums of the day.

import { drawFlow, drawIntensity } from "./charts.js";
import { Feed, Refused, get, post } from "./feed.js";
import { figure, inLanguage, named, speak, word, write } from "./words.js";

const SUMS_EVERY_MS = 15_000;
const STATES_EVERY_MS = 3_000;

/** @type {any} */
let plant = null;
/** @type {{nodes: any[], edges: any[]}} */
let network = { nodes: [], edges: [] };
/** @type {any} */
let live = null;
/** @type {Map<string, any>} */
const alarms = new Map();
/** @type {any[]} */
let devices = [];
/** @type {any} */
let health = null;
/** @type {{energy: any[], emissions: any[], balance: any[], intensity: any[], ratio: any[]} | null} */
let sums = null;
let boot = "";
let flowUnit = "kWh";

/** @param {string} id @returns {any} */
const element = (id) => document.getElementById(id);

/** @param {string} id @param {string} text */
function put(id, text) {
  const at = element(id);
  if (at.textContent !== text) at.textContent = text;
}

// the day's sums ---------------------------------------------------------------
async function loadSums() {
  plant = await get("/v1/plant");
  const base = plant.base_interval_s * 1000;
  const start = Date.parse(plant.day_start);
  const end = Math.max(start + base, Math.floor(Date.parse(plant.time) / base) * base);
  const day = `start=${plant.day_start}&end=${new Date(end).toISOString()}`;
  const bus = mainBus();
  const [energy, emissions, balance, ratio, intensity] = await Promise.all([
    get(`/v1/energy?bucket=1d&${day}`),
    get(`/v1/emissions?bucket=1d&${day}`),
    get(`/v1/balance?bucket=1d&${day}`),
    get(`/v1/intensity?bucket=1d&${day}`),
    bus ? get(`/v1/intensity?node=${encodeURIComponent(bus.node)}&bucket=15m&${day}`) : [],
  ]);
  sums = { energy, emissions, balance, ratio, intensity };
  showSums();
}

/** The electricity bus most edges meet at. */
function mainBus() {
  /** @param {any} node */
  const degree = (node) => network.edges.filter((edge) => edge.from === node.node || edge.to === node.node).length;
  const buses = network.nodes.filter((node) => node.kind === "bus" && node.carrier === "electricity");
  return buses.sort((a, b) => degree(b) - degree(a))[0] ?? null;
}

/** Edges that bring electricity to where it is used. */
function usingEdges() {
  const users = new Set(
    network.nodes.filter((node) => node.kind === "load" || node.kind === "converter").map((node) => node.node),
  );
  return network.edges.filter((edge) => edge.carrier === "electricity" && users.has(edge.to));
}

/** The sum of what is known; null where nothing is. @param {(number | null | undefined)[]} values */
function total(values) {
  const known = values.filter((value) => typeof value === "number");
  return known.length ? known.reduce((a, b) => a + b, 0) : null;
}

function showSums() {
  if (!sums) return;
  const { energy, emissions, ratio } = sums;
  const kwh = new Map(energy.map((row) => [row.edge, row.energy_kwh]));
  put("energy-today", figure(total(usingEdges().map((edge) => kwh.get(edge.edge)))));
  const site = emissions.filter((row) => row.node === "site");
  put("carbon-today", figure(total(site.map((row) => row.emissions_kgco2e))));
  put("scopes", site.map((row) => `${word("scope")} ${row.scope}: ${figure(row.emissions_kgco2e)}`).join(" · "));
  const coverage = total(site.map((row) => row.coverage));
  put("completeness", coverage === null ? "–" : figure((100 * coverage) / site.length, 1));
  const kgPerKwh = new Map(ratio.map((row) => [row.node, row.intensity_kgco2e_per_kwh]));
  const amount = flowUnit === "kWh" ? kwh : new Map(network.edges.map((edge) => {
    const known = [kwh.get(edge.edge), kgPerKwh.get(edge.from)];
    return [edge.edge, known.every((value) => typeof value === "number") ? known[0] * known[1] : null];
  }));
  drawFlow(element("sankey"), network, amount, flowUnit === "kWh" ? "kWh" : "kgCO₂e");
  showIntensity();
  showNodes();
}

function showIntensity() {
  if (!sums || !plant) return;
  const bus = mainBus();
  put("bus", bus ? named(bus.name) : "");
  const steps = sums.intensity.map((row) => ({
    time: here(Date.parse(row.start)), value: row.intensity_kgco2e_per_kwh,
  }));
  const start = Date.parse(plant.day_start);
  const now = live && bus ? live.nodes.find((/** @type {any} */ row) => row.node === bus.node) : null;
  const value = now?.intensity_kgco2e_per_kwh;
  const at = live ? here(Date.parse(live.time)) : "";
  // The newest bucket lasts until now.
  if (steps.length && at) steps.push({ time: at, value: steps[steps.length - 1].value });
  drawIntensity(
    element("intensity-chart"), steps, typeof value === "number" ? { time: at, value } : null,
    [here(start), here(start + 24 * 3600_000)],
  );
}

/** A moment as a clock in the plant shows it, as Plotly wants it. @param {number} ms */
function here(ms) {
  return new Date(ms).toLocaleString("sv-SE", { timeZone: plant.zone });
}

const KINDS = ["load", "export", "source", "converter", "storage", "bus"];

function showNodes() {
  if (!sums) return;
  const balance = new Map(sums.balance.map((row) => [row.node, row]));
  /** @type {Map<string, any[]>} */
  const emissions = new Map();
  for (const row of sums.emissions) emissions.set(row.node, [...(emissions.get(row.node) ?? []), row]);
  const power = new Map((live?.nodes ?? []).map((/** @type {any} */ row) => [row.node, row.power_kw]));
  const rows = network.nodes.map((node) => {
    const side = balance.get(node.node);
    const leaving = node.kind === "source" || node.kind === "converter" || node.kind === "storage";
    const flows = emissions.get(node.node) ?? [];
    const covered = total(flows.map((row) => row.coverage));
    return {
      node,
      kwh: side ? (leaving ? side.out_kwh : side.in_kwh) : null,
      kg: total(flows.map((row) => row.emissions_kgco2e)),
      coverage: covered === null ? null : (100 * covered) / flows.length,
    };
  });
  const mostKwh = Math.max(...rows.map((row) => row.kwh ?? 0), 1e-9);
  const mostKg = Math.max(...rows.map((row) => row.kg ?? 0), 1e-9);
  const body = element("nodes");
  body.replaceChildren();
  for (const kind of KINDS) {
    const mine = rows.filter((row) => row.node.kind === kind).sort((a, b) => (b.kwh ?? 0) - (a.kwh ?? 0));
    if (!mine.length) continue;
    const head = body.insertRow();
    head.className = "kind";
    const cell = head.insertCell();
    cell.colSpan = 5;
    cell.textContent = word(kind);
    for (const row of mine) {
      const line = body.insertRow();
      line.dataset.node = row.node.node;
      line.insertCell().textContent = named(row.node.name);
      const kw = line.insertCell();
      kw.className = "number power";
      kw.textContent = figure(power.get(row.node.node));
      bar(line.insertCell(), row.kwh, mostKwh, "");
      bar(line.insertCell(), row.kg, mostKg, "carbon");
      const complete = line.insertCell();
      complete.className = "number";
      complete.textContent = figure(row.coverage, 0);
    }
  }
}

/** @param {HTMLElement} cell @param {number | null} value @param {number} most @param {string} kind */
function bar(cell, value, most, kind) {
  cell.className = `bar ${kind}`;
  const box = document.createElement("div");
  const track = document.createElement("span");
  const fill = document.createElement("span");
  const text = document.createElement("output");
  track.className = "track";
  fill.className = "fill";
  fill.style.width = `${Math.max(0, Math.min(1, (value ?? 0) / most)) * 100}%`;
  text.textContent = figure(value);
  track.append(fill);
  box.append(text, track);
  cell.append(box);
}

// this second -------------------------------------------------------------------
function showLive() {
  if (!live) return;
  put("power", figure(total(usingEdges().map((edge) => live.edges_kw[edge.edge]))));
  /** @type {Map<string, any>} */
  const nodes = new Map(live.nodes.map((/** @type {any} */ row) => [row.node, row]));
  const users = network.nodes.filter((node) => node.kind === "load" || node.kind === "export");
  const rate = nodes.get("site")?.emissions_kgco2e_per_h
    ?? total(users.map((node) => nodes.get(node.node)?.emissions_kgco2e_per_h));
  put("carbon-rate", figure(rate));
  const bus = mainBus();
  put("intensity", bus ? figure(nodes.get(bus.node)?.intensity_kgco2e_per_kwh, 3) : "–");
  for (const line of element("nodes").querySelectorAll("tr[data-node]")) {
    line.querySelector(".power").textContent = figure(nodes.get(line.dataset.node)?.power_kw);
  }
}

function showClock() {
  if (!plant) return;
  const options = /** @type {Intl.DateTimeFormatOptions} */ ({ timeZone: plant.zone, hour12: false });
  put("clock", new Date().toLocaleString(inLanguage() === "zh" ? "zh-CN" : "en-GB", options));
}

// alarms ------------------------------------------------------------------------
function showAlarms() {
  const order = ["active-unack", "returned-unack", "active-ack", "shelved"];
  const rows = [...alarms.values()].sort(
    (a, b) => order.indexOf(a.state) - order.indexOf(b.state) || b.severity - a.severity,
  );
  const waiting = rows.filter((row) => row.state.endsWith("-unack")).length;
  element("alarm-count").hidden = waiting === 0;
  put("alarm-count", String(waiting));
  const list = element("alarms");
  list.replaceChildren(...(rows.length ? rows.map(alarmLine) : [empty("noAlarms")]));
}

/** @param {any} alarm */
function alarmLine(alarm) {
  const line = document.createElement("li");
  line.className = alarm.state;
  line.dataset.alarm = alarm.id;
  const text = document.createElement("span");
  text.textContent = named(alarm.message);
  const small = document.createElement("small");
  const since = alarm.since && plant ? here(Date.parse(alarm.since)) : "";
  const who = alarm.acknowledged_by ? ` · ${word("acknowledgedBy")}${alarm.acknowledged_by}` : "";
  small.textContent = `${word(alarm.state)} · ${word("since")} ${since}${who}`;
  small.title = `${alarm.id} · ${alarm.point}`;
  line.append(text, small);
  if (alarm.state.endsWith("-unack")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word("acknowledge");
    button.onclick = () => acknowledge(alarm.id, button);
    line.append(button);
  }
  return line;
}

/** @param {string} id @param {HTMLButtonElement} button */
async function acknowledge(id, button) {
  button.disabled = true;
  try {
    const path = id.split("/").map(encodeURIComponent).join("/");
    takeAlarm(await post(`/v1/alerts/${path}/ack`, { who: element("operator").value.trim() }));
  } catch (why) {
    button.disabled = false;
    button.title = word("failed") + /** @type {Error} */ (why).message;
  }
}

/** @param {any} alarm */
function takeAlarm(alarm) {
  if (alarm.state === "normal") alarms.delete(alarm.id);
  else alarms.set(alarm.id, alarm);
  showAlarms();
}

// devices and health --------------------------------------------------------------
function showDevices() {
  const known = devices.filter((device) => device.up !== null);
  put("device-count", `${known.filter((device) => device.up).length} / ${devices.length}`);
  const rows = [...devices].sort((a, b) => Number(a.up !== false) - Number(b.up !== false));
  element("devices").replaceChildren(...(rows.length ? rows.map((device) => {
    const line = document.createElement("li");
    const state = device.up === null ? "unread" : device.up ? "up" : "down";
    line.className = state;
    line.dataset.device = device.device;
    const name = document.createElement("span");
    name.textContent = named(device.name);
    const small = document.createElement("small");
    small.textContent = state === "down" && device.detail ? device.detail : (device.protocol ?? "");
    small.title = small.textContent ?? "";
    const told = document.createElement("span");
    told.textContent = word(state);
    told.className = state === "down" ? "bad" : "muted";
    line.append(name, told, document.createElement("i"), small);
    return line;
  }) : [empty("noDevices")]));
}

function showHealth() {
  if (!health) return;
  const pill = element("health");
  pill.hidden = health.status === "ok";
  pill.className = `pill ${health.status === "down" ? "down" : "warn"}`;
  pill.textContent = word(health.status === "down" ? "healthDown" : "degraded");
  const parts = Object.entries(/** @type {Record<string, any>} */ (health.parts)).filter(([, part]) => part.status !== "ok");
  pill.title = parts.map(([name, part]) => `${name}: ${part.detail || part.status}`).join("\n");
}

/** @param {string} key */
function empty(key) {
  const line = document.createElement("li");
  line.className = "empty";
  line.textContent = word(key);
  return line;
}

// the link ------------------------------------------------------------------------
/** @param {"online" | "offline" | "connecting"} state */
function showLink(state) {
  const pill = element("link");
  pill.dataset.state = state;
  pill.className = `pill ${state === "online" ? "up" : state === "offline" ? "down" : "warn"}`;
  pill.textContent = word(state);
  document.body.classList.toggle("offline", state === "offline");
}

const feed = new Feed({
  open: () => showLink("online"),
  lost: () => showLink("offline"),
  live: (body) => {
    live = body;
    showLive();
  },
  alerts: takeAlarm,
  snapshot: (body, from) => {
    alarms.clear();
    for (const alarm of body.alerts) alarms.set(alarm.id, alarm);
    live = body.live ?? live;
    showAlarms();
    showLive();
    if (boot && boot !== from) void begin(); // another run of the server: the plant may have changed
    boot = from;
  },
});

/** Run now and again, whatever becomes of one turn. @param {() => Promise<void>} work @param {number} everyMs */
async function keepDoing(work, everyMs) {
  try {
    await work();
  } catch (why) {
    if (why instanceof Refused && why.status === 401) element("door").showModal?.();
    else if (!(why instanceof Refused)) showLink("offline"); // nobody answers at all
  }
  window.setTimeout(() => keepDoing(work, everyMs), everyMs);
}

async function loadStates() {
  [devices, health] = await Promise.all([get("/v1/devices"), get("/v1/health")]);
  showDevices();
  showHealth();
  if (feed.isOpen) showLink("online");
}

async function begin() {
  plant = await get("/v1/plant");
  network = await get("/v1/network");
  put("plant", named(plant.name));
  document.title = `${named(plant.name)} · ecmc`;
  await loadSums();
  showLive();
  showAlarms();
}

function showAll() {
  write();
  element("language").textContent = inLanguage() === "zh" ? "EN" : "中文";
  showLink(element("link").dataset.state);
  if (plant) {
    put("plant", named(plant.name));
    document.title = `${named(plant.name)} · ecmc`;
  }
  showSums();
  showLive();
  showAlarms();
  showDevices();
  showHealth();
  showClock();
}

// the reader's choices --------------------------------------------------------------
element("language").onclick = () => {
  speak(inLanguage() === "zh" ? "en" : "zh");
  showAll();
};
element("theme").onclick = () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "light" ? "dark" : "light";
  localStorage.setItem("ecmc.theme", root.dataset.theme);
  showSums();
};
for (const [id, unit] of [["flow-energy", "kWh"], ["flow-carbon", "kg"]]) {
  element(id).onclick = () => {
    flowUnit = unit;
    element("flow-energy").setAttribute("aria-pressed", String(unit === "kWh"));
    element("flow-carbon").setAttribute("aria-pressed", String(unit !== "kWh"));
    showSums();
  };
}
element("operator").value = localStorage.getItem("ecmc.operator") ?? "";
element("operator").onchange = () => localStorage.setItem("ecmc.operator", element("operator").value.trim());
element("key-form").onsubmit = async (/** @type {Event} */ event) => {
  event.preventDefault();
  try {
    await post("/v1/session", { key: element("key").value });
    location.reload();
  } catch {
    element("key-wrong").hidden = false;
  }
};

document.documentElement.dataset.theme = localStorage.getItem("ecmc.theme") ?? "dark";
showLink("connecting");
write();
element("language").textContent = inLanguage() === "zh" ? "EN" : "中文";
feed.open();
void keepDoing(loadStates, STATES_EVERY_MS);
void keepDoing(() => (network.nodes.length ? loadSums() : begin()), SUMS_EVERY_MS);
window.setInterval(showClock, 1000);
window.setInterval(showIntensity, 60_000);
window.addEventListener("load", showSums); // Plotly arrives after this module
let resized = 0;
window.addEventListener("resize", () => {
  clearTimeout(resized);
  resized = window.setTimeout(showSums, 200); // letters grow with the screen
});
