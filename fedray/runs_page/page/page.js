// The page of runs: a list with filter and sort, one run, a comparison. It asks /runs every
// two seconds, and /runs/ID of the runs that are shown; what has not changed is not sent.
// The REST service serves it for a client's federations, `fedray ui` for all runs here.
"use strict";

const PERIOD_MS = 2000;
const MAX_CARDS = 6;                // runs under way that are shown whole
const STEP = 200;                   // rows of the list that are added at once
const MAX_COMPARED = 200;
const OUTCOMES = {f: "fused", a: "apart", l: "late", r: "refused", x: "failed", h: "hidden", "-": "none"};
const UNITS = {kb: 1e3, mb: 1e6, gb: 1e9, tb: 1e12, b: 1, s: 1, min: 60, h: 3600, "%": .01};
const storedKeys = () => JSON.parse(sessionStorage.getItem("fedray-keys") || "null");
const byId = (id) => document.getElementById(id);
const cards = new Map();            // id -> {card, version, open: Set of details}
const rows = new Map();             // id -> {row, shown}
const ticked = new Set();
let page = {runs: [], version: ""}; // the last answer of /runs
let timer = 0, nShown = STEP, sorting = {by: "newest", isUp: false}, compared = "";

const sum = (counts) => Object.values(counts || {}).reduce((all, n) => all + n, 0);
const COLUMNS = [                   // title, value to sort and filter by, text
  ["run", (run) => run.name.toLowerCase(), null],
  ["state", (run) => run.states[0], null],
  ["algorithm", (run) => run.fusion_algorithm, (run) => run.fusion_algorithm],
  ["accuracy", (run) => run.accuracy, (run) => formatPercent(run.accuracy)],
  ["loss", (run) => run.loss, (run) => formatNumber(run.loss)],
  ["round", (run) => run.round, (run) => `${run.round} of ${run.rounds ?? "?"}`],
  ["time", timeOf, (run) => formatDuration(timeOf(run))],
  ["bytes", (run) => run.bytes_moved, (run) => formatBytes(run.bytes_moved)],
  ["trouble", (run) => run.troubles && sum(run.troubles), (run) => troubleText(run)],
];
const VALUES = {newest: (run) => run.changed ?? run.created,
  ...Object.fromEntries(COLUMNS.map(([title, value]) => [title, value]))};
const IS_UP = new Set(["run", "state", "algorithm", "loss", "time", "bytes"]); // first clicked

function timeOf(run) { return run.elapsed_s ?? run.seconds; }

function troubleText({troubles}) {
  if (!troubles) return "hidden";
  return Object.entries(troubles).map(([kind, n]) => `${n} ${kind}`).join(", ");
}

// ---- calls

async function fetchOk(path, options = {}) {
  const own = storedKeys();
  const headers = own ? {"X-IBM-Client-Id": own.client, "X-IBM-Client-Secret": own.secret} : {};
  const answer = await fetch(path, {headers, cache: "no-store", ...options});
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const text = [body.detail || `HTTP ${answer.status}`, body.hint].filter(Boolean).join(" ");
  throw Object.assign(new Error(text), {status: answer.status});
}

const fetchJson = async (path) => (await fetchOk(path)).json();

// ---- where one is: "" the list, #run=ID, #compare=ID,ID&metric=…

function readPlace() {
  const place = new URLSearchParams(location.hash.slice(1));
  return {run: place.get("run"), compare: place.get("compare")?.split(",").filter(Boolean),
    metric: place.get("metric") || "", by: place.get("by") || "", target: place.get("target") || ""};
}

function showPlace() {
  const place = readPlace();
  const isList = !place.run && !place.compare;
  byId("list").hidden = !isList || !page.runs.length;
  byId("comparison").hidden = !place.compare;
  byId("back").hidden = isList;
  byId("cards").hidden = Boolean(place.compare);
  byId("cards").classList.toggle("single", Boolean(place.run));
  return place;
}

// ---- one run

const isDone = (run) => run.round >= run.rounds || Boolean(run.stop_reason);

function createWorst({accuracy, loss}) {          // over the parties' own tests
  if (accuracy == null && loss == null) return [];
  return [["worst tenth", accuracy == null ? formatNumber(loss) : formatPercent(accuracy)]];
}

function createFacts(run) {
  const joined = run.num_parties - run.remaining_parties;
  const pairs = [
    ["parties", run.num_parties == null ? "–" : `${joined} of ${run.num_parties}`],
    ["round", `${run.round} of ${run.rounds ?? "?"}`],
    ["loss", formatNumber(run.loss)],
    ["accuracy", formatPercent(run.accuracy)],
    ...Object.entries(run.metrics).map(([name, value]) => [name, formatNumber(value)]),
    ...createWorst(run.worst_tenth),
    ...Object.entries(run.epsilons).map(([unit, value]) =>
      [unit === "party" ? "epsilon" : `epsilon of a ${unit}`, formatNumber(value)]),
    ...(run.staleness == null ? [] : [["staleness", formatNumber(run.staleness)]]),
    ["moved", run.round ? formatBytes(run.bytes_moved) : "–"],
    [run.elapsed_s === undefined ? "time" : "elapsed", formatDuration(timeOf(run))],
  ];
  return createHtml("dl", {class: "numbers"}, ...pairs.map(([name, value]) =>
    createHtml("div", {}, createHtml("dt", {}, name), createHtml("dd", {}, value))));
}

function createProgressBar(run) {
  const inner = createHtml("span");
  inner.style.width = `${100 * (isDone(run) ? 1 : run.round / Math.max(1, run.rounds))}%`;
  return createHtml("div", {class: "bar", "aria-hidden": "true"}, inner);
}

const createStates = (run) => run.states.map((state) =>
  createHtml("span", {class: `state ${state.split(/\W/)[0]}`}, state));

function describeNow(run) {                      // of a federation's round under way
  const now = run.under_way;
  if (!page.is_service) return run.round < run.rounds ? `round ${run.round + 1} is under way` : "";
  if (!now || !now.stage) return "starting the parties";
  const late = Object.entries(now.troubled || {}).map(([who, why]) => `; ${who} ${why}`);
  const what = now.stage === "joining" ? "parties are reading their data"
    : `round ${now.round}: ${now.stage}` +
      (now.chosen ? `, ${now.reported} of ${now.chosen} reported` : "");
  return what + late.join("");
}

function createNote(run) {
  const [state] = run.states, n = run.remaining_parties;
  if (run.failure) return createHtml("p", {class: "note bad"}, run.failure);
  let text = "";
  if (state === "queued") text = "waits for its turn: other trainings run";
  else if (state === "training") text = describeNow(run);
  else if (run.stop_reason) text = `stopped after round ${run.round}: ${run.stop_reason}`;
  else if (state === "waiting for parties" && !n) text = "all parties have joined; POST /train begins";
  else if (n && state !== "stopped") text = `${n} ${n === 1 ? "party has" : "parties have"} yet to join`;
  return createHtml("p", {class: "note"}, text);
}

function createLink(path, text, fileName) {       // with keys it is fetched, then saved
  const link = createHtml("a", {href: path, "data-key": path}, text);
  if (fileName) link.setAttribute("download", fileName);
  link.addEventListener("click", async (event) => {
    if (!storedKeys()) return;
    event.preventDefault();
    try {
      const answer = await fetchOk(path);
      const named = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition") || "");
      const saved = createHtml("a", {href: URL.createObjectURL(await answer.blob()),
        download: named ? named[1] : fileName || "report.html"});
      saved.click();
      setTimeout(() => URL.revokeObjectURL(saved.href), 60000);
    } catch (error) { showError(error); }
  });
  return link;
}

function createLinks(run, place) {
  const links = createHtml("p", {class: "links"});
  for (const [path, name, size] of run.models) {
    links.append(createLink(path, size == null ? name : `${name} (${formatBytes(size)})`, name));
  }
  if (run.report) links.append(createLink(run.report, "report"));
  if (!run.models.length && run.round) {
    links.append(createHtml("span", {}, run.is_live ? "its model comes at its end" : "no model file"));
  }
  if (!place.run) links.append(createHtml("a", {href: `#run=${run.id}`, "data-key": "whole"}, "this run alone"));
  if (page.may_stop && run.is_live && !page.is_service) links.append(createStopButton(run));
  return links;
}

function createStopButton(run) {
  const button = createHtml("button", {type: "button", "data-key": "stop"}, "Stop");
  button.addEventListener("click", async () => {
    if (!confirm(`Stop ${escapeText(run.name)}? Rounds that are done are kept.`)) return;
    button.disabled = true;
    button.textContent = "Stopping…";
    try {
      await fetchOk(`/runs/${run.id}/stop`, {method: "POST"});
    } catch (error) { showError(error); }
    poll();
  });
  return button;
}

function createCurves(run) {
  const own = run.curves.filter((one) => one.round.length);
  if (!own.length) return "";
  const names = [...new Set(own.flatMap((one) => Object.keys(one)))]
    .filter((name) => !["group", "round", "bytes_moved", "seconds", "loss", "accuracy"].includes(name));
  const curve = (name) => drawCurve(name, own.map((one) => [one.group, one.round, one[name] || []]));
  const bars = own.length === 1 ? drawBars(own[0].round, own[0].bytes_moved || []) : "";
  const figures = createHtml("div", {class: "curves"},
    ...["loss", "accuracy"].map(curve), bars, ...names.map(curve));
  if (own.length > 1) figures.append(createLegend(own.map((one) => one.group || "all")));
  return figures;
}

function createStrip(text) {                     // what came of a party's last rounds
  const counts = {};
  for (const letter of text) counts[letter] = (counts[letter] || 0) + 1;
  const words = Object.entries(counts).filter(([letter]) => letter !== "-")
    .map(([letter, n]) => `${n} ${OUTCOMES[letter] || "other"}`).join(", ");
  const strip = createHtml("span", {class: "strip", role: "img", "aria-label": `last rounds: ${words || "none"}`});
  for (const letter of text) {
    const kind = OUTCOMES[letter] || "none";
    strip.append(createHtml("i", {class: kind, title: kind === "none" ? "not chosen" : kind}));
  }
  return strip;
}

function createTable(label, titles, lines) {
  const head = createHtml("tr", {}, ...titles.map((title) => createHtml("th", {scope: "col"}, title)));
  const table = createHtml("table", {}, createHtml("thead", {}, head), createHtml("tbody", {}, ...lines));
  return createHtml("div", {class: "wide", role: "region", tabindex: 0, "aria-label": label,
    "data-key": label}, table);
}

// Each party's last numbers and what came of its rounds, as far as the history has them.
function createParties(run) {
  const {parties} = run;
  const has = (name) => parties.some((party) => party[name] != null);
  const tested = ["accuracy", "loss"].filter((name) => parties.some((one) => one.tests[name] != null));
  const kinds = ["fused", "apart", "late", "refused", "failed"]
    .filter((kind) => ["fused", "late", "refused", "failed"].includes(kind) || parties.some((one) => one[kind]));
  const columns = [
    ["party", (party) => createHtml("bdi", {}, party.name)],
    ...(has("handler") ? [["data handler", (party) => createHtml("bdi", {}, party.handler)]] : []),
    ["samples", (party) => party.n_samples ?? "–"],
    ["loss", (party) => formatNumber(party.loss)],
    ...tested.map((name) => [`own test ${name}`, (party) =>
      name === "accuracy" ? formatPercent(party.tests[name]) : formatNumber(party.tests[name])]),
    ["seconds", (party) => formatDuration(party.seconds)],
    ["chosen", (party) => party.chosen],
    ...kinds.map((kind) => [kind, (party) => party[kind] ?? "–"]),
    ["rounds", (party) => createStrip(party.strip)],
    ["", (party) => [party.left && `left before round ${party.left}`,
      party.joined && `joined in round ${party.joined}`, party.trouble].filter(Boolean).join(", ")],
  ];
  const lines = parties.map((party) => createHtml("tr", {class: party.left ? "gone" : ""},
    ...columns.map(([, cell]) => createHtml("td", {}, cell(party)))));
  const inside = [createTable("Parties", columns.map(([title]) => title), lines)];
  if (run.n_parties > parties.length) {
    inside.push(createHtml("p", {class: "note"}, `the ${parties.length} in most trouble of ${run.n_parties}`));
  }
  if (run.has_omitted_lines) {
    inside.push(createHtml("p", {class: "note"}, "rounds kept the lines of some parties only (history_parties): counts are of those"));
  }
  if (run.is_hidden) {
    inside.push(createHtml("p", {class: "note"}, "noise hides what single parties did: that stands in operator.jsonl alone"));
  }
  return [`parties (${parties.length})`, ...inside];
}

// Parties outside the cluster: who has enrolled, when each was heard of, what it moved.
function createEdges(run) {
  const titles = ["edge", "state", "does", "last seen", "version", "sent", "fetched", "chosen"];
  const lines = run.edges.map((edge) => createHtml("tr", {class: edge.state === "enrolled" ? "" : "gone"},
    ...[createHtml("bdi", {}, edge.name), edge.state, edge.activity ?? "–",
      edge.last_seen ? new Date(1000 * edge.last_seen).toLocaleString() : "never", edge.version ?? "–",
      formatBytes(edge.bytes_up), formatBytes(edge.bytes_down), edge.chosen,
    ].map((cell) => createHtml("td", {}, cell))));
  const {enrolled, present, training} = run.edge_counts;
  const counts = [`${enrolled} enrolled`, ...(present == null ? [] : [`${present} present`, `${training} training`])];
  const inside = [createTable("Edges", titles, lines)];
  if (enrolled > lines.length) inside.push(createHtml("p", {class: "note"}, `the ${lines.length} that enrolled last`));
  return [`edges (${counts.join(", ")})`, ...inside];
}

function createDetails(entry, key, isOpen, [summary, ...inside]) {
  const details = createHtml("details", {}, createHtml("summary", {"data-key": key}, summary), ...inside);
  details.open = entry.open.has(key) || (isOpen && !entry.open.has(`no ${key}`));
  details.addEventListener("toggle", () => {
    entry.open.delete(details.open ? `no ${key}` : key);
    entry.open.add(details.open ? key : `no ${key}`);
  });
  return details;
}

const createList = (texts) => createHtml("ul", {class: "notes"}, ...texts.map((one) => createHtml("li", {}, one)));

function createSettings(pairs) {
  return createHtml("dl", {class: "settings"}, ...pairs.map(([name, value]) =>
    createHtml("div", {}, createHtml("dt", {}, name), createHtml("dd", {}, value))));
}

function fillCard(entry, run, place) {
  const created = run.created ? ` · ${new Date(1000 * run.created).toLocaleString()}` : "";
  const key = entry.card.contains(document.activeElement) && document.activeElement.dataset.key;
  entry.card.replaceChildren(
    createHtml("div", {class: "head"},
      createHtml("h2", {}, createHtml("bdi", {}, run.name)), ...createStates(run)),
    createHtml("p", {class: "note"}, `${run.fusion_algorithm} · ${run.model_type} · `,
      createHtml("code", {}, run.folder ?? run.id), created),
    ...(run.problem ? [createHtml("p", {class: "note bad"}, run.problem)] : []),
    createFacts(run),
    createProgressBar(run),
    createNote(run),
    createCurves(run));
  if (run.findings.length) entry.card.append(createList(run.findings));
  const isSingle = Boolean(place.run);
  if (run.parties.length) entry.card.append(createDetails(entry, "parties", isSingle, createParties(run)));
  if (run.edges?.length) entry.card.append(createDetails(entry, "edges", isSingle, createEdges(run)));
  if (run.changed_settings.length) {
    const title = `settings other than by default (${run.changed_settings.length})`;
    entry.card.append(createDetails(entry, "settings", isSingle, [title, createSettings(run.changed_settings)]));
  }
  if (run.notes.length) {
    entry.card.append(createDetails(entry, "notes", isSingle, [`notes (${run.notes.length})`, createList(run.notes)]));
  }
  entry.card.append(createLinks(run, place));
  if (key) [...entry.card.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus();
}

async function refreshCards(place) {
  const live = page.runs.filter((run) => run.is_live).slice(0, MAX_CARDS);
  const shown = place.run ? [place.run] : (live.length ? live : page.runs.slice(0, 1)).map((run) => run.id);
  for (const id of [...cards.keys()].filter((one) => !shown.includes(one))) cards.delete(id);
  for (const id of shown) {
    const isNew = !cards.has(id);
    if (isNew) cards.set(id, {card: createHtml("article"), version: "", open: new Set()});
    const entry = cards.get(id);
    let answer;
    try {
      answer = await fetchJson(`/runs/${encodeURIComponent(id)}?seen=${entry.version}`);
    } catch (error) {
      if (error.status !== 404) throw error;
      entry.card.replaceChildren(createHtml("p", {class: "note bad", role: "alert"}, error.message));
      entry.version = "";
      continue;
    }
    if (answer.version !== entry.version && answer.run) fillCard(entry, answer.run, place);
    entry.version = answer.version;
  }
  const wanted = shown.map((id) => cards.get(id)?.card).filter(Boolean);
  const now = [...byId("cards").children];
  if (wanted.length !== now.length || wanted.some((card, i) => card !== now[i])) {
    byId("cards").replaceChildren(...wanted);
  }
}

// ---- the list

function parseWord(word) {                       // a condition such as bytes<10MB, or a word
  const found = /^([a-z]+)(<=|>=|<|>|=)(-?[\d.]+(?:e-?\d+)?)([a-z%]*)$/i.exec(word);
  const value = found && VALUES[found[1].toLowerCase()];
  if (!value) return (run) => run.haystack.includes(word.toLowerCase());
  const limit = Number(found[3]) * (UNITS[found[4].toLowerCase()] ?? 1);
  const holds = {"<": (a) => a < limit, ">": (a) => a > limit, "=": (a) => a === limit,
    "<=": (a) => a <= limit, ">=": (a) => a >= limit}[found[2]];
  return (run) => typeof value(run) === "number" && holds(value(run));
}

function chooseRuns() {
  const words = byId("find").value.split(/\s+/).filter(Boolean).map(parseWord);
  const state = byId("state").value, algorithm = byId("algorithm").value;
  const isTroubled = byId("troubled").checked;
  const chosen = page.runs.filter((run) => (!state || run.states.includes(state))
    && (!algorithm || run.fusion_algorithm === algorithm)
    && (!isTroubled || sum(run.troubles) > 0) && words.every((holds) => holds(run)));
  const value = VALUES[sorting.by], sign = sorting.isUp ? 1 : -1;
  return chosen.sort((one, other) => {           // what has no value comes last
    const a = value(one) ?? null, b = value(other) ?? null;
    if (a === null || b === null) return (a === null) - (b === null);
    return a < b ? -sign : a > b ? sign : 0;
  });
}

function fillRow(row, run) {
  const box = createHtml("input", {type: "checkbox", "data-key": `tick ${run.id}`, "aria-label": escapeText(`compare ${run.name}`)});
  box.checked = ticked.has(run.id);
  box.addEventListener("change", () => { box.checked ? ticked.add(run.id) : ticked.delete(run.id); showTicked(); });
  const name = [createHtml("a", {href: `#run=${run.id}`, "data-key": `run ${run.id}`}, createHtml("bdi", {}, run.name))];
  const problem = run.problem || run.failure;
  if (problem) name.push(createHtml("span", {class: "note bad"}, problem.split("\n")[0].slice(0, 160)));
  const cells = COLUMNS.slice(2).map(([title, , text]) =>
    createHtml("td", {"data-label": title, class: title}, text(run)));
  if (!run.troubles) cells.at(-1).classList.add("hidden");
  row.replaceChildren(createHtml("td", {class: "tick"}, box), createHtml("td", {class: "run"}, ...name),
    createHtml("td", {"data-label": "state", class: "states"}, ...createStates(run)), ...cells);
}

function renderList() {
  const chosen = chooseRuns(), shown = chosen.slice(0, nShown);
  const body = byId("runs").tBodies[0];
  const focused = byId("runs").contains(document.activeElement) && document.activeElement.dataset.key;
  for (const run of shown) {
    if (!rows.has(run.id)) rows.set(run.id, {row: createHtml("tr"), shown: null});
    const entry = rows.get(run.id);
    if (entry.shown !== run) { fillRow(entry.row, run); entry.shown = run; }
  }
  const wanted = shown.map((run) => rows.get(run.id).row), now = [...body.children];
  if (wanted.length !== now.length || wanted.some((row, i) => row !== now[i])) body.replaceChildren(...wanted);
  if (focused && document.activeElement?.dataset.key !== focused) {
    [...byId("runs").querySelectorAll("[data-key]")].find((one) => one.dataset.key === focused)?.focus();
  }
  const n = chosen.length, all = page.runs.length;
  byId("count").textContent = n === all ? `${all} ${all === 1 ? "run" : "runs"}` : `${n} of ${all} runs`;
  byId("more").hidden = n <= nShown;
  byId("more").textContent = `Show ${Math.min(STEP, n - nShown)} more`;
  byId("tick-shown").hidden = n < 2;
  for (const head of byId("runs").tHead.querySelectorAll("th[data-title]")) {
    const isSorted = head.dataset.title === sorting.by;
    head.setAttribute("aria-sort", isSorted ? (sorting.isUp ? "ascending" : "descending") : "none");
  }
  byId("sort").value = sorting.by;
  showTicked();
}

function showTicked() {
  const known = new Set(page.runs.map((run) => run.id));
  for (const id of ticked) if (!known.has(id)) ticked.delete(id);
  const n = ticked.size;
  byId("compare").disabled = !n || n > MAX_COMPARED;
  byId("compare").textContent = n > MAX_COMPARED ? `${n} ticked: at most ${MAX_COMPARED}`
    : n ? `Compare ${n} ${n === 1 ? "run" : "runs"}` : "Compare: tick runs";
  byId("untick").hidden = !n;
}

function fillSelect(select, values) {            // keeps what is chosen
  const chosen = select.value;
  const texts = [...new Set(values)].sort();
  if (texts.join("\n") === [...select.options].slice(1).map((one) => one.value).join("\n")) return;
  select.replaceChildren(select.options[0], ...texts.map((text) => createHtml("option", {value: text}, text)));
  select.value = texts.includes(chosen) ? chosen : "";
}

function takeRuns(answer) {
  const before = new Map(page.runs.map((run) => [run.id, run]));
  for (const [i, run] of answer.runs.entries()) {
    const text = JSON.stringify(run), old = before.get(run.id);
    if (old?.text === text) { answer.runs[i] = old; continue; }
    const settings = Object.entries(run.settings).map(([name, value]) => `${name}=${value}`);
    run.text = text;
    run.haystack = [run.name, run.id, run.folder, ...run.states, run.fusion_algorithm, run.model_type,
      ...settings, run.problem, run.failure].join(" ").toLowerCase();
  }
  page = answer;
  for (const id of [...rows.keys()]) if (!page.runs.some((run) => run.id === id)) rows.delete(id);
  fillSelect(byId("state"), page.runs.flatMap((run) => run.states));
  fillSelect(byId("algorithm"), page.runs.map((run) => run.fusion_algorithm));
  byId("docs").hidden = !page.is_service;
  const notes = page.notes || [];
  byId("list-notes").replaceChildren(...notes.map((note) => createHtml("li", {}, note)));
  showEmpty();
}

function showSummary() {
  const count = (state) => page.runs.filter((run) => run.states.at(-1) === state).length;
  const open = page.is_service ? `${page.runs.length - count("stopped")} open, ` : "";
  const queued = count("queued") ? ` ${count("queued")} queued,` : "";
  const text = `${open}${count("training")} training,${queued} ${page.runs.length} in all`
    + (page.n_unread ? `; reading ${page.n_unread} more` : "");
  if (byId("summary").textContent !== text) byId("summary").textContent = text;
}

function showEmpty() {
  byId("empty").hidden = page.runs.length > 0 || Boolean(page.n_unread);
  if (page.is_service) return;
  byId("empty").replaceChildren(createHtml("h2", {}, "No run yet"), createHtml("p", {},
    `fedray run, fedray sweep and fedray serve make some; they then appear here. Looked in ${(page.folders || []).join(", ")}.`),
    createList(page.notes || []));
}

// ---- the comparison

function compareWith(changes) {
  const place = {...readPlace(), ...changes};
  const parts = [`compare=${place.compare.join(",")}`, ...["metric", "by", "target"]
    .filter((name) => place[name]).map((name) => `${name}=${encodeURIComponent(place[name])}`)];
  location.hash = parts.join("&");
}

async function showComparison(place) {
  const query = new URLSearchParams([...place.compare.map((id) => ["run", id]),
    ["metric", place.metric], ["by", place.by], ["target", place.target]]);
  const key = `${query} ${page.version}`;
  if (key === compared) return;
  compared = key;
  const section = byId("comparison");
  let answer;
  try {
    answer = await fetchJson(`/compare?${query}`);
  } catch (error) {
    if (error.status !== 422) { compared = ""; throw error; }
    const back = createHtml("button", {type: "button"}, "Compare them anew");
    back.addEventListener("click", () => compareWith({metric: "", by: "", target: ""}));
    section.replaceChildren(createHtml("p", {class: "note bad", role: "alert"}, error.message), back);
    return;
  }
  if (`${query}` !== `${key}`.split(" ")[0]) return;
  const focused = section.contains(document.activeElement) && document.activeElement.id;
  fillComparison(section, answer, place, query);
  if (focused) byId(focused)?.focus();
}

function createChoice(id, label, values, chosen, empty) {
  const select = createHtml("select", {id}, ...(empty ? [createHtml("option", {value: ""}, empty)] : []),
    ...values.map((value) => createHtml("option", {value}, value)));
  select.value = chosen;
  return createHtml("label", {}, `${label} `, select);
}

function createQuestion(answer, place) {
  const metric = createChoice("by-metric", "Metric", answer.metrics, answer.metric, "");
  const by = createChoice("by-setting", "Values of", answer.settings, place.by, "all settings that differ");
  const target = createHtml("input", {id: "target", inputmode: "decimal", size: 8, placeholder: "0.9", value: place.target});
  const form = createHtml("form", {class: "question"}, metric, by,
    createHtml("label", {}, "Target ", target), createHtml("button", {type: "submit"}, "Compare"));
  const ask = () => compareWith({metric: form.querySelector("#by-metric").value,
    by: form.querySelector("#by-setting").value, target: target.value.trim()});
  form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  for (const select of form.querySelectorAll("select")) select.addEventListener("change", ask);
  return form;
}

function createExplanation(answer) {
  const better = answer.is_more_better ? "more" : "less";
  return createHtml("p", {class: "note"}, answer.is_measured
    ? `By ${answer.metric} after the last round, ${better} is better: means ± standard deviations over seeds. `
      + "Differences to the best mean are paired by seed, with 95 % intervals; what is not clear of the noise may be chance."
    : "No number was measured to compare by.");
}

function fillComparison(section, answer, place, query) {
  const title = createHtml("h2", {}, `${answer.n_runs} ${answer.n_runs === 1 ? "run" : "runs"} compared`);
  const files = createHtml("p", {class: "links"});
  if (!answer.rows.length) {
    section.replaceChildren(title, createList(answer.notes));
    return;
  }
  const lines = answer.rows.map((row) => createHtml("tr", {}, ...row.map((cell) => createHtml("td", {}, cell))));
  const runs = answer.runs.rows.map((row, i) => createHtml("tr", {}, ...row.map((cell, j) => createHtml("td", {},
    j ? (typeof cell === "number" ? formatCell(answer.runs.titles[j], cell) : cell || "–")
      : createHtml("a", {href: `#run=${answer.ids[i]}`}, createHtml("bdi", {}, cell))))));
  const drawn = answer.curves.rounds;
  const figures = [["rounds", formatShort], ["seconds", formatDuration], ["bytes", formatBytes]]
    .filter(([over]) => answer.curves[over].length)
    .map(([over, format]) => drawBands(answer.metric, over, format, answer.curves[over]));
  if (!page.is_service) {
    files.append(...["html", "csv", "latex"].map((form) =>
      createHtml("a", {href: `/compare.${form}?${query}`}, form === "html" ? "save as HTML" : form.toUpperCase())));
  }
  section.replaceChildren(title, createQuestion(answer, place), createExplanation(answer),
    createList(answer.findings), createTable("Variants", answer.titles, lines),
    ...(drawn.length ? [createLegend(drawn.map((one) => one.label)), createHtml("div", {class: "curves"}, ...figures)] : []),
    createHtml("h3", {}, "Runs"), createTable("Runs", answer.runs.titles, runs), createList(answer.notes), files);
}

function formatCell(title, value) {
  if (/^seconds/.test(title)) return formatDuration(value);
  if (/^bytes/.test(title)) return formatBytes(value);
  return Number.isInteger(value) ? value : Number(value.toPrecision(4));
}

// ---- keys, errors, polling

function forgetKeys() {
  sessionStorage.removeItem("fedray-keys");
  cards.clear();
  rows.clear();
  page = {runs: [], version: ""};
  byId("cards").replaceChildren();
  byId("runs").tBodies[0].replaceChildren();
  byId("leave").hidden = true;
  showPlace();
}

function showError(error) {
  const isUnauthorized = error.status === 401;
  const isWrongKey = isUnauthorized && storedKeys();
  if (isUnauthorized) forgetKeys();
  byId("keys").hidden = !isUnauthorized;
  byId("trouble").hidden = isUnauthorized && !isWrongKey;
  byId("trouble").textContent = isUnauthorized || error.status ? escapeText(error.message)
    : "It does not answer; trying again.";
  byId("summary").textContent = isUnauthorized ? "Keys are needed." : "Not connected.";
  return isUnauthorized;
}

async function refresh() {
  const answer = await fetchJson(`/runs?seen=${page.version}`);
  if (answer.runs) { takeRuns(answer); renderList(); }
  showSummary();
  byId("leave").hidden = !storedKeys();
  const place = showPlace();
  if (place.compare) await showComparison(place);
  else await refreshCards(place);
}

async function poll() {
  clearTimeout(timer);
  let wait = document.hidden ? 10 * PERIOD_MS : PERIOD_MS;
  try {
    await refresh();
    byId("trouble").hidden = byId("keys").hidden = true;
    if (page.n_unread) wait = 50;
  } catch (error) {
    if (showError(error)) return;                // continues when keys are entered
  }
  clearTimeout(timer);
  timer = setTimeout(poll, wait);
}

function sortBy(by) {
  sorting = {by, isUp: sorting.by === by ? !sorting.isUp : IS_UP.has(by)};
  renderList();
}

function prepareList() {
  const head = COLUMNS.map(([title]) => {
    const button = createHtml("button", {type: "button"}, title);
    button.addEventListener("click", () => sortBy(title));
    return createHtml("th", {scope: "col", "data-title": title}, button);
  });
  byId("runs").tHead.replaceChildren(createHtml("tr", {}, createHtml("th", {scope: "col", class: "tick"}, "✓"), ...head));
  byId("sort").append(...Object.keys(VALUES).map((name) => createHtml("option", {value: name}, name)));
  byId("sort").addEventListener("change", () => sortBy(byId("sort").value));
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["find", "state", "algorithm", "troubled"]) {
    byId(id).addEventListener("input", () => { nShown = STEP; renderList(); });
  }
  byId("more").addEventListener("click", () => { nShown += STEP; renderList(); });
  byId("tick-shown").addEventListener("click", () => { tick(chooseRuns().map((run) => run.id)); });
  byId("untick").addEventListener("click", () => { ticked.clear(); tick([]); byId("find").focus(); });
  byId("compare").addEventListener("click", () => { location.hash = `compare=${[...ticked].join(",")}`; });
}

function tick(ids) {
  for (const id of ids) ticked.add(id);
  for (const entry of rows.values()) entry.shown = null;
  renderList();
}

byId("keys").addEventListener("submit", (event) => {
  event.preventDefault();
  const own = {client: byId("client").value.trim(), secret: byId("secret").value.trim()};
  sessionStorage.setItem("fedray-keys", JSON.stringify(own));
  byId("secret").value = "";
  poll();
});
byId("leave").addEventListener("click", () => { forgetKeys(); poll(); });
window.addEventListener("hashchange", () => {
  for (const entry of cards.values()) entry.version = "";
  showPlace();
  window.scrollTo(0, 0);
  poll();
});
prepareList();
poll();
