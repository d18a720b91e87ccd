// @ts-check
// The inventory page: a period on paper, every figure with a way down to its registers.

import { drawMonths } from "./charts.js";
import { get, post, put as send } from "./feed.js";
import { figure, inLanguage, named, speak, word, write } from "./words.js";

/** @type {any} */
let plant = null;
/** @type {any} */
let answer = null;
/** @type {any[]} */
let entries = [];
/** @type {any[]} */
let choices = [];
let basis = "location";
/** @type {string[]} */
let trail = [];

/** @param {string} id @returns {any} */
const element = (id) => document.getElementById(id);

/** @param {HTMLTableElement} table @param {string[]} heads @param {(string | HTMLElement)[][]} rows @param {number} [numbersFrom] */
function fill(table, heads, rows, numbersFrom = 99) {
  table.replaceChildren();
  const head = table.createTHead().insertRow();
  heads.forEach((text, column) => {
    const cell = document.createElement("th");
    cell.textContent = text;
    if (column >= numbersFrom) cell.className = "number";
    head.append(cell);
  });
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((content, column) => {
      const cell = line.insertCell();
      if (column >= numbersFrom) cell.className = "number";
      cell.append(content);
    });
  }
}

/** kg as tonnes. @param {number | null} kg */
const tonnes = (kg) => (kg === null ? "–" : figure(kg / 1000, 2));

/** @param {number | null} share */
const percent = (share) => (share === null ? "–" : `${figure(100 * share, 1)} %`);

/** @param {string} text @param {() => void} act */
function link(text, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "link";
  button.textContent = text;
  button.onclick = act;
  return button;
}

// the paper -----------------------------------------------------------------------
async function load() {
  const query = `period=${element("period").value}&method_set=${element("method").value}`;
  answer = await get(`/v1/inventory?${query}`);
  element("csv").href = `/v1/inventory?${query}&format=csv`;
  element("xlsx").href = `/v1/inventory?${query}&format=xlsx`;
  const touched = `start=${answer.month_starts[0]}&end=${answer.end}`;
  entries = (await get(`/v1/activities?${touched}&limit=1000`)).items.reverse(); // the newest first
  element("activities-csv").href = `/v1/activities?${touched}&format=csv`;
  element("activities-xlsx").href = `/v1/activities?${touched}&format=xlsx`;
  show();
}

function show() {
  if (!answer) return;
  document.title = `${named(plant.name)} · ${word("inventory")} ${answer.period}`;
  element("plant").textContent = named(plant.name);
  element("edition").textContent =
    `${named(answer.method_set.name)} · ${answer.method_set.edition} · GWP ${answer.method_set.gwp_set} · tCO₂e`;
  showTotals();
  showBars();
  showLines();
  showFactors();
  showDeclared();
  showActivities();
}

function showTotals() {
  const rows = answer.totals.map((/** @type {any} */ total) => [
    `${word("scope")} ${total.scope}`, word(total.basis), ...total.kgco2e.map(tonnes),
    open(total), total.uncertainty === null ? "–" : `± ${percent(total.uncertainty)}`,
  ]);
  for (const [key, column] of [["biogenic", answer.biogenic_kgco2], ["removed", answer.removed_kgco2]]) {
    if (column.some((/** @type {number | null} */ kg) => kg)) {
      const sum = column.reduce((/** @type {number} */ a, /** @type {number | null} */ b) => a + (b ?? 0), 0);
      rows.push([word(key), "", ...column.map(tonnes), tonnes(sum), ""]);
    }
  }
  for (const left of answer.exports) {
    if (!left.kgco2e.some((/** @type {number | null} */ kg) => kg)) continue;
    rows.push([word("exported"), word(left.basis), ...left.kgco2e.map(tonnes), tonnes(left.total_kgco2e), ""]);
    if (left.net_is_asked) {
      rows.push([word("net"), word(left.basis), ...left.kgco2e.map(() => ""), tonnes(left.net_kgco2e), ""]);
    }
  }
  fill(element("totals"), [word("scope"), word("basis"), ...answer.months, word("total"), word("uncertainty")], rows, 2);
}

/** The total as a way into it. @param {any} total */
function open(total) {
  const text = tonnes(total.total_kgco2e);
  if (total.scope > 2) return text;
  return link(text, () => explain(
    `/v1/explain?node=site&scope=${total.scope}&basis=${total.basis}&method_set=${answer.method_set.id}&${span()}`,
  ));
}

function span() {
  const starts = answer.month_starts;
  const known = answer.totals[0]?.kgco2e ?? [];
  const first = known.findIndex((/** @type {number | null} */ kg) => kg !== null);
  const last = known.length - 1 - [...known].reverse().findIndex((kg) => kg !== null);
  const end = starts[last + 1] ?? new Date(Math.min(Date.now(), Date.parse(answer.end))).toISOString();
  return `start=${starts[Math.max(0, first)]}&end=${end}`;
}

function showBars() {
  const lines = answer.lines.filter((/** @type {any} */ row) => row.basis === null || row.basis === basis);
  drawMonths(element("bars"), answer.months, lines.map((/** @type {any} */ row) => ({
    name: named(row.name), months: row.kgco2e.map((/** @type {number | null} */ kg) => (kg === null ? null : kg / 1000)),
  })));
  element("basis-location").setAttribute("aria-pressed", String(basis === "location"));
  element("basis-market").setAttribute("aria-pressed", String(basis === "market"));
}

function showLines() {
  const heads = [
    word("source"), word("kind"), word("scope"), word("category"), word("basis"), word("factors"),
    "tCO₂e", "kWh", word("complete"), word("estimatedShare"), word("uncertainty"),
  ];
  const rows = answer.lines.map((/** @type {any} */ row) => {
    const name = row.kind === "activity" ? link(named(row.name), () => showEntries(row)) : ["source", "combustion"].includes(row.kind)
      ? link(named(row.name), () => explain(
        `/v1/explain?node=${row.line}&scope=${row.scope}&basis=${row.basis ?? "location"}&method_set=${answer.method_set.id}&${span()}`,
      ))
      : named(row.name);
    return [
      name, word(row.kind), String(row.scope), `${row.category} ${named(answer.categories[row.category])}`,
      row.basis ? word(row.basis) : "", row.factors.join(" "), tonnes(row.total_kgco2e), figure(row.energy_kwh),
      percent(row.coverage), percent(row.estimated_share),
      row.uncertainty === null ? "–" : `± ${percent(row.uncertainty)}`,
    ];
  });
  fill(element("lines"), heads, rows, 6);
}

function showFactors() {
  const heads = [
    word("factor"), word("value"), word("unit"), word("level"), word("validFrom"), word("published"), word("document"),
    word("confidence"), word("usedBy"),
  ];
  const rows = answer.factors.map((/** @type {any} */ row) => [
    row.id, String(row.value), row.unit, `${row.region} ${row.level}`.trim(), row.valid_from ?? "", row.published ?? "?",
    row.document || row.source, row.unverified ? `⚠ ${word("unverified")}` : row.confidence, row.used_by.join(" "),
  ]);
  fill(element("factors"), heads, rows);
}

function showDeclared() {
  const list = element("declared");
  list.replaceChildren();
  /** @param {string} text */
  const say = (text) => list.append(Object.assign(document.createElement("li"), { textContent: text }));
  const year = answer.base_year;
  if (year) {
    const amount = year.kgco2e === null ? "" : ` · ${tonnes(year.kgco2e)} tCO₂e`;
    const due = year.recalculation_due ? ` · ⚠ ${word("recalculationDue")} ${tonnes(year.computed_kgco2e)} tCO₂e` : "";
    say(`${word("baseYear")} ${year.year}${amount} · ${word("recalculation")} ${percent(year.recalculation_threshold)}${due}`);
  }
  for (const left of answer.exclusions) {
    say(`${word("excluded")}: ${named(left.what)} (${word("scope")} ${left.scope}) – ${named(left.reason)}`);
  }
  if (answer.uncertainty_not_stated.length) say(`${word("notStated")}: ${answer.uncertainty_not_stated.join(", ")}`);
  if (!list.children.length) say(word("nothingDeclared"));
}

function showActivities() {
  const heads = [
    "#", word("period"), word("kind"), word("subject"), word("use"), word("amount"), word("evidence"), word("state"),
    word("operator"), "",
  ];
  const rows = entries.map((row) => {
    const acts = document.createElement("span");
    if (row.state === "waiting") acts.append(link(word("approve"), () => decide(row.id)), " ");
    if (row.state !== "withdrawn") acts.append(link(word("withdraw"), () => withdraw(row)));
    const people = [row.who, row.approved_by].filter(Boolean).join(" → ");
    return [
      String(row.id), days(row), word(`kind${capital(row.kind)}`), row.subject,
      row.use, `${figure(row.amount)} ${row.unit}`, evidence(row),
      word(row.state) + (row.why ? `: ${row.why}` : ""), people, acts,
    ];
  });
  fill(element("activities"), heads, rows);
}

/** First and last day in the plant's zone. @param {{start: string, end: string}} span */
function days(span) {
  /** @param {number} at */
  const day = (at) => new Date(at).toLocaleDateString("sv-SE", { timeZone: plant.zone });
  const [first, last] = [day(Date.parse(span.start)), day(Date.parse(span.end) - 1)];
  return first === last ? first : `${first} – ${last}`;
}

/** @param {string} text */
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** The file that backs an entry; its hash is in the title. @param {any} row */
function evidence(row) {
  if (!row.evidence_sha256) return "";
  const anchor = document.createElement("a");
  anchor.href = `/v1/evidence/${row.evidence_sha256}`;
  anchor.title = `SHA-256 ${row.evidence_sha256}`;
  anchor.textContent = row.evidence_file;
  return anchor;
}

/** The entries behind a line. @param {any} line */
function showEntries(line) {
  const behind = entries.filter((row) => row.state === "counted"
    && `${row.kind} ${row.subject}${row.use ? ` of ${row.use}` : ""}` === line.line);
  element("opened-title").textContent = named(line.name);
  const used = answer.factors.filter((/** @type {any} */ row) => line.factors.includes(row.id));
  element("opened-body").replaceChildren(told({ entries: behind, factors: used }));
  element("back").hidden = true;
  element("opened").showModal();
}

// figures opened -------------------------------------------------------------------
/** @param {string} path */
async function explain(path) {
  await attempt(async () => {
    const body = await get(path);
    trail.push(path);
    element("opened-title").textContent = `${body.node ?? body.edge} · ${days(body)}`;
    element("opened-body").replaceChildren(told(body));
    element("back").hidden = trail.length < 2;
    if (!element("opened").open) element("opened").showModal();
  });
}

/** Any answer, as people read it: lists as tables, links as ways down. @param {any} value @returns {HTMLElement} */
function told(value) {
  const list = document.createElement("dl");
  for (const [key, part] of Object.entries(value)) {
    if (part === null || part === "" || (Array.isArray(part) && !part.length)) continue;
    const name = document.createElement("dt");
    name.textContent = key;
    const content = document.createElement("dd");
    if (Array.isArray(part) && typeof part[0] === "object") content.append(listed(part));
    else if (typeof part === "object" && !Array.isArray(part)) content.append(told(part));
    else content.append(shown(part));
    list.append(name, content);
  }
  return list;
}

/** @param {any[]} rows */
function listed(rows) {
  const table = document.createElement("table");
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))]
    .filter((column) => rows.some((row) => row[column] !== null && row[column] !== ""));
  fill(table, columns, rows.map((row) => columns.map((column) => shown(row[column]))));
  return table;
}

/** @param {any} value @returns {string | HTMLElement} */
function shown(value) {
  if (typeof value === "string" && value.startsWith("/v1/explain?")) return link("→", () => explain(value));
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(10)));
  if (value !== null && typeof value === "object") return JSON.stringify(value);
  return value === null || value === undefined ? "–" : String(value);
}

// what people write down -------------------------------------------------------------
/** @param {number} number */
async function decide(number) {
  await attempt(async () => {
    await post(`/v1/activities/${number}/approve?who=${who()}`, {});
    await load();
  });
}

/** @param {any} row */
async function withdraw(row) {
  const why = window.prompt(`#${row.id} ${row.subject}: ${word("why")}`);
  if (why === null) return;
  await attempt(async () => {
    await post(`/v1/activities/${row.id}/withdraw?who=${who()}`, { why });
    await load();
  });
}

const who = () => encodeURIComponent(element("operator").value.trim());
const form = /** @type {HTMLFormElement} */ (element("activity"));

/** @param {string} name @returns {any} */
const field = (name) => form.elements.namedItem(name);

/** Offer what the kind can be about. */
function offer() {
  const kind = field("kind").value;
  element("subjects").replaceChildren(...choices.filter((choice) => choice.kind === kind).map((choice) => {
    const option = document.createElement("option");
    option.value = choice.subject;
    option.label = named(choice.name) + (choice.unverified ? ` ⚠ ${word("unverified")}` : "");
    return option;
  }));
  offerUnits();
}

/** The units that fit the subject, and the numbers its formula needs. */
function offerUnits() {
  const chosen = choices.find((choice) => choice.kind === field("kind").value && choice.subject === field("subject").value);
  element("units").replaceChildren(...(chosen?.units ?? []).map((/** @type {string} */ unit) => new Option(unit, unit)));
  if (chosen && !chosen.units.includes(field("unit").value)) field("unit").value = chosen.units[0];
  const details = element("details");
  const names = chosen ? [...chosen.needs, ...chosen.may] : [];
  details.replaceChildren(...names.map((/** @type {string} */ name) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.dataset.detail = name;
    input.required = chosen.needs.includes(name);
    label.append(name + (input.required ? " *" : ""), input);
    return label;
  }));
  details.hidden = !names.length;
  const told = chosen ? [...new Set([named(chosen.name), chosen.source])] : [];
  if (chosen?.unverified) told.push(`⚠ ${word("unverified")}`);
  element("hint").textContent = told.join(" · ");
}
field("kind").onchange = () => { field("subject").value = ""; offer(); };
field("subject").oninput = offerUnits;

/** The row as the register takes it: what is left empty is not sent. */
function written() {
  /** @type {Record<string, any>} */
  const row = {};
  for (const name of ["period", "kind", "subject", "unit", "use", "spread", "note"]) {
    if (field(name).value) row[name] = field(name).value;
  }
  for (const name of ["amount", "scope", "category", "uncertainty_pct"]) {
    if (field(name).value !== "") row[name] = Number(field(name).value);
  }
  /** @type {Record<string, number>} */
  const balance = {};
  for (const name of ["opening", "bought", "sold", "closing", "nameplate_change"]) {
    if (field(name).value !== "") balance[name] = Number(field(name).value);
  }
  if (Object.keys(balance).length) row.balance = balance;
  /** @type {Record<string, any>} */
  const details = {};
  for (const input of /** @type {NodeListOf<HTMLInputElement>} */ (element("details").querySelectorAll("input"))) {
    if (input.value !== "") details[String(input.dataset.detail)] = asNumber(input.value);
  }
  if (Object.keys(details).length) row.details = details;
  return row;
}

/** A number, a list such as [[10, 0.8]], or a word. @param {string} text */
function asNumber(text) {
  if (text.trim().startsWith("[")) {
    try { return JSON.parse(text); } catch { return text; }
  }
  return Number.isNaN(Number(text)) ? text : Number(text);
}

form.onsubmit = async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  await attempt(async () => {
    const row = written();
    const file = field("evidence").files[0];
    if (file) {
      const kept = await send(`/v1/evidence?name=${encodeURIComponent(file.name)}&who=${who()}`, file);
      row.evidence_file = file.name;
      row.evidence_sha256 = kept.sha256;
    }
    await post(`/v1/activities?who=${who()}`, [row]);
    form.reset();
    offer();
    await load();
  });
};
element("rows").onchange = async () => {
  const file = element("rows").files[0];
  if (!file) return;
  await attempt(async () => {
    await post(`/v1/activities?who=${who()}`, new Blob([file], { type: "text/csv" }));
    await load();
  });
  element("rows").value = "";
};

/** @param {() => Promise<void>} work */
async function attempt(work) {
  const trouble = element("trouble");
  try {
    await work();
    trouble.hidden = true;
  } catch (why) {
    trouble.textContent = word("failed") + (why instanceof Error ? why.message : String(why));
    trouble.hidden = false;
    trouble.scrollIntoView({ block: "nearest" });
  }
}

// the reader's choices --------------------------------------------------------------
function showAll() {
  write();
  offer();
  element("language").textContent = inLanguage() === "zh" ? "EN" : "中文";
  show();
}
element("language").onclick = () => {
  speak(inLanguage() === "zh" ? "en" : "zh");
  showAll();
};
element("theme").onclick = () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "light" ? "dark" : "light";
  localStorage.setItem("ecmc.theme", root.dataset.theme);
  if (answer) showBars();
};
for (const name of ["location", "market"]) {
  element(`basis-${name}`).onclick = () => {
    basis = name;
    showBars();
  };
}
element("period").onchange = element("method").onchange = () => void attempt(load);
element("operator").value = localStorage.getItem("ecmc.operator") ?? "";
element("operator").onchange = () => localStorage.setItem("ecmc.operator", element("operator").value.trim());
element("back").onclick = () => {
  trail.pop();
  const before = trail.pop();
  if (before) void explain(before);
};
element("opened").onclose = () => { trail = []; };

document.documentElement.dataset.theme = localStorage.getItem("ecmc.theme") ?? "dark";
void attempt(async () => {
  plant = await get("/v1/plant");
  const year = Number(plant.day_start.slice(0, 4)) + (plant.day_start.slice(5, 10) === "12-31" ? 1 : 0);
  const month = Number(plant.time.slice(5, 7));
  for (let back = 0; back < 5; back += 1) element("period").append(new Option(String(year - back)));
  for (let back = 0; back < 24; back += 1) {
    const at = year * 12 + month - 1 - back;
    element("period").append(new Option(`${Math.floor(at / 12)}-${String((at % 12) + 1).padStart(2, "0")}`));
  }
  for (const name of plant.method_sets) element("method").append(new Option(name));
  showAll();
  await load();
  choices = await get("/v1/activities/choices");
  offer();
});
window.addEventListener("load", () => answer && showBars()); // Plotly arrives after this module
