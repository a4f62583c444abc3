// The live page: polls GET /aggregators every two seconds, and the history of federations
// that have changed. Everything from the service is inserted as text, never as HTML.
"use strict";

const PERIOD_MS = 2000;
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 200, HEIGHT = 80;
const MAX_STRIP = 60;               // rounds of a party that are shown one by one
// what a line obeys and what turns the words around it about, as fedray/untrusted_text.py
const HARMFUL = /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g;
const cards = new Map();            // aggregator_id -> {card, seen, isOpen}
const storedKeys = () => JSON.parse(sessionStorage.getItem("fedray-keys") || "null");
const byId = (id) => document.getElementById(id);
let timer = 0;

const escapeText = (text) => String(text).replace(HARMFUL, (one) =>
  one === "\n" ? one : "\\u" + one.charCodeAt(0).toString(16).padStart(4, "0"));

function createHtml(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside.map((part) => part instanceof Node ? part : escapeText(part)));
  return element;
}

function createSvg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

async function fetchOk(path) {
  const own = storedKeys();
  const headers = own ? {"X-IBM-Client-Id": own.client, "X-IBM-Client-Secret": own.secret} : {};
  const answer = await fetch(path, {headers, cache: "no-store"});
  if (answer.ok) return answer;
  const body = await answer.json();
  throw Object.assign(new Error(body.detail), {status: answer.status});
}

const fetchJson = async (path) => (await fetchOk(path)).json();
const formatNumber = (value, digits = 4) => value == null ? "–" : value.toFixed(digits);
const formatPercent = (value) => value == null ? "–" : (100 * value).toFixed(1) + " %";

function formatBytes(bytes) {
  if (bytes == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  for (; bytes >= 1000 && i < units.length - 1; i++) bytes /= 1000;
  return bytes.toFixed(i && bytes < 100 ? 1 : 0) + " " + units[i];
}

function formatDuration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min ${Math.floor(seconds % 60)} s`;
}

function findTicks(low, high, isWhole) {      // two to five round numbers within
  const span = high - low || Math.abs(high) || 1;
  let step = 10 ** Math.floor(Math.log10(span / 2));
  for (const times of [2, 2.5, 2]) if (span / step > 4) step *= times;
  if (isWhole) step = Math.max(1, Math.round(step));
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    ticks.push(Number((i * step).toPrecision(12)));
  }
  return ticks.length ? ticks : [low];
}

// A figure with a caption, a plot and its two axes; x and y map values to WIDTH and HEIGHT.
function createFigure(title, last, axes) {
  const svg = createSvg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none",
    role: "img", "aria-label": `${title} by round: ${last}`,
  });
  const plot = createHtml("div", {class: "plot"}, svg);
  for (const value of axes.yTicks) {
    const y = axes.y(value);
    svg.append(createSvg("line", {class: "axis", x1: 0, x2: WIDTH, y1: y, y2: y}));
    const label = createHtml("span", {class: "y"}, axes.formatY(value));
    label.style.top = `${100 * y / HEIGHT}%`;
    plot.append(label);
  }
  for (const value of axes.xTicks) {
    const label = createHtml("span", {class: "x"}, value);
    label.style.left = `${100 * axes.x(value) / WIDTH}%`;
    plot.append(label);
  }
  const caption = createHtml("figcaption", {}, createHtml("span", {}, title), createHtml("span", {}, last));
  return [svg, createHtml("figure", {}, caption, plot)];
}

function drawCurve(key, history, format, formatY) {
  const points = history.filter((round) => round[key] != null).map((r) => [r.round, r[key]]);
  const ends = points.length > 1 ? [points[0], points[points.length - 1]] : points;
  const last = ends.map((point) => format(point[1])).join(" → ") || "–";
  const values = points.map((point) => point[1]);
  const low = key === "accuracy" || !values.length ? 0 : Math.min(...values);
  const high = key === "accuracy" || !values.length ? 1 : Math.max(...values);
  const first = points.length ? points[0][0] : 1;
  const end = points.length ? points[points.length - 1][0] : 1;
  const x = (round) => end === first ? WIDTH / 2 : (round - first) / (end - first) * WIDTH;
  const y = (value) => high === low ? HEIGHT / 2 : (high - value) / (high - low) * HEIGHT;
  const axes = {x, y, formatY, yTicks: findTicks(low, high), xTicks: findTicks(first, end, true)};
  const [svg, figure] = createFigure(key, last, axes);
  if (!points.length) return figure;
  const path = points.map(([round, value]) => `${x(round).toFixed(1)},${y(value).toFixed(1)}`);
  svg.append(createSvg("polyline", {class: `line ${key}`, points: path.join(" ")}));
  const value = values[values.length - 1];
  const dot = {x1: x(end), x2: x(end), y1: y(value), y2: y(value), class: `dot ${key}`};
  svg.append(createSvg("line", dot));
  return figure;
}

function drawBars(history) {
  if (history.some((round) => round.bytes_moved == null)) return "";
  const mean = history.reduce((sum, round) => sum + round.bytes_moved, 0) / history.length;
  const drawn = history.slice(-100);
  const high = Math.max(1, ...drawn.map((round) => round.bytes_moved));
  const step = WIDTH / drawn.length, first = drawn[0].round;
  const axes = {
    x: (round) => (round - first + .5) * step, y: (value) => HEIGHT - value / high * HEIGHT,
    xTicks: findTicks(first, drawn[drawn.length - 1].round, true), yTicks: findTicks(0, high),
    formatY: formatBytes,
  };
  const [svg, figure] = createFigure("moved", `${formatBytes(mean)} a round`, axes);
  drawn.forEach((round, i) => {
    const top = axes.y(round.bytes_moved);
    svg.append(createSvg("rect", {
      class: "moved", x: i * step + step * .15, width: step * .7, y: top, height: HEIGHT - top,
    }));
  });
  return figure;
}

const isDone = (one) => one.round >= one.rounds || Boolean(one.stop_reason);

function createSpread(spread) {                  // over the parties' own tests
  const worst = spread?.accuracy?.worst_tenth ?? spread?.loss?.worst_tenth;
  const format = spread?.accuracy ? formatPercent : formatNumber;
  return worst === undefined ? [] : [["worst tenth", format(worst)]];
}

function createEpsilons(privacy) {               // spent until now
  const spent = [["epsilon", privacy], ["epsilon of a sample", privacy?.samples]];
  return spent.filter(([, own]) => own?.epsilon !== undefined)
    .map(([name, own]) => [name, formatNumber(own.epsilon)]);
}

function createFacts(federation) {
  const {metrics} = federation;
  const joined = federation.num_parties - federation.remaining_parties;
  const pairs = [
    ["parties", `${joined} of ${federation.num_parties}`],
    ["round", `${federation.round} of ${federation.rounds}`],
    ["loss", formatNumber(metrics.loss)],
    ["accuracy", formatPercent(metrics.accuracy)],
    ...Object.entries(metrics.metrics ?? {}).map(([name, value]) => [name, formatNumber(value)]),
    ...createSpread(metrics.spread),
    ...createEpsilons(metrics.privacy),
    ...(metrics.staleness == null ? [] : [["staleness", formatNumber(metrics.staleness)]]),
    ["moved", metrics.bytes_moved === null ? "–" : formatBytes(metrics.bytes_moved ?? 0)],
    ["elapsed", formatDuration(federation.elapsed_s)],
  ];
  return createHtml("dl", {class: "numbers"}, ...pairs.map(([name, value]) =>
    createHtml("div", {}, createHtml("dt", {}, name), createHtml("dd", {}, value))));
}

function createProgressBar(federation) {
  const inner = createHtml("span");
  const share = isDone(federation) ? 1 : federation.round / Math.max(1, federation.rounds);
  inner.style.width = `${100 * share}%`;
  return createHtml("div", {class: "bar", "aria-hidden": "true"}, inner);
}

function createStates(federation) {              // what came of it stays beside "stopped"
  const states = [federation.state];
  if (federation.state === "stopped" && federation.error) states.unshift("failed");
  else if (federation.state === "stopped" && isDone(federation)) states.unshift("trained");
  return states.map((state) =>
    createHtml("span", {class: `state ${state.split(" ")[0]}`}, state));
}

function createNote(federation) {
  const {error} = federation, now = federation.under_way;
  if (error) return createHtml("p", {class: "note bad"}, `${error.detail}\n${error.hint}`);
  if (federation.state === "queued") {
    return createHtml("p", {class: "note"}, "waits for its turn: other trainings run");
  }
  if (federation.state === "training") {
    if (!now || !now.stage) return createHtml("p", {class: "note"}, "starting the parties");
    const late = Object.entries(now.troubled || {}).map(([who, why]) => `; ${who} ${why}`);
    const what = now.stage === "joining" ? "parties are reading their data"
      : `round ${now.round}: ${now.stage}` +
        (now.chosen ? `, ${now.reported} of ${now.chosen} reported` : "");
    return createHtml("p", {class: "note"}, what + late.join(""));
  }
  if (federation.stop_reason) {
    const reason = `stopped after round ${federation.round}: ${federation.stop_reason}`;
    return createHtml("p", {class: "note"}, reason);
  }
  if (federation.state === "waiting for parties" && !federation.remaining_parties) {
    return createHtml("p", {class: "note"}, "all parties have joined; POST /train begins");
  }
  const n = federation.remaining_parties;
  const missing = `${n} ${n === 1 ? "party has" : "parties have"} yet to join`;
  return createHtml("p", {class: "note"}, n && federation.state !== "stopped" ? missing : "");
}

function createLink(path, text, fileName) {       // with keys it is fetched, then saved
  const link = createHtml("a", {href: path}, text);
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

function createLinks(federation) {
  const path = `/aggregators/${encodeURIComponent(federation.aggregator_id)}`;
  const links = createHtml("p", {class: "links"});
  if (["queued", "training"].includes(federation.state) || !federation.round) return links;
  links.append(createLink(`${path}/weights`, "model", ""));
  if (isDone(federation)) links.append(createLink(`${path}/report`, "report"));
  return links;
}

// Each party's last numbers and what came of its rounds, as far as the history has them.
function createParties(federation, entry) {
  const rounds = federation.history.map((line) =>
    new Map((line.parties || []).map((party) => [party.name, party])));
  const rows = federation.parties.map((party) => {
    const own = rounds.map((round) => round.get(party.party_id));
    const last = own.findLast((one) => one) || {};
    const fused = own.filter((one) => one?.outcome?.startsWith("fused")).length;
    const strip = createHtml("span", {class: "strip"}, ...own.slice(-MAX_STRIP).map((one) =>
      createHtml("i", {class: one?.outcome ? one.outcome.split(/\W/)[0] : "none",
        title: one?.outcome ? escapeText(one.outcome) : one ? "hidden" : "not chosen"})));
    const since = [party.joined && `joined in round ${party.joined}`,
      party.left && `left before round ${party.left}`].filter(Boolean).join(", ");
    const trouble = last.outcome && !/^(fused|apart)$/.test(last.outcome) ? last.outcome : since;
    const cells = [createHtml("bdi", {}, party.party_id), createHtml("bdi", {}, party.data_handler),
      last.n_samples ?? "–", formatNumber(last.loss), formatDuration(last.seconds),
      own.some((one) => one?.outcome) ? fused : "–", strip, trouble || ""];
    return createHtml("tr", {}, ...cells.map((cell) => createHtml("td", {}, cell)));
  });
  const titles = ["party", "data handler", "samples", "loss", "seconds", "fused", "rounds", ""];
  const head = createHtml("tr", {}, ...titles.map((title) => createHtml("th", {}, title)));
  const table = createHtml("table", {}, createHtml("thead", {}, head), createHtml("tbody", {}, ...rows));
  const details = createHtml("details", {},
    createHtml("summary", {}, `parties (${rows.length})`), createHtml("div", {class: "wide"}, table));
  details.open = entry.isOpen;
  details.addEventListener("toggle", () => { entry.isOpen = details.open; });
  return details;
}

function fillCard(entry, federation) {
  const {history} = federation;
  const created = new Date(1000 * federation.created).toLocaleString();
  const kind = `${federation.fusion_algorithm} · ${federation.model_type} · `;
  const id = createHtml("code", {}, federation.aggregator_id);
  entry.card.replaceChildren(
    createHtml("div", {class: "head"},
      createHtml("h2", {}, createHtml("bdi", {}, federation.name)), ...createStates(federation)),
    createHtml("p", {class: "note"}, kind, id, ` · ${created}`),
    createFacts(federation),
    createProgressBar(federation),
    createNote(federation),
  );
  if (history.length) {
    entry.card.append(createHtml("div", {class: "curves"},
      drawCurve("loss", history, (value) => formatNumber(value, 3), (value) => Number(value.toPrecision(3))),
      drawCurve("accuracy", history, formatPercent, (value) => `${Math.round(100 * value)} %`),
      drawBars(history)));
  }
  if (federation.parties.length) entry.card.append(createParties(federation, entry));
  entry.card.append(createLinks(federation));
}

async function refresh() {
  const {aggregators} = await fetchJson("/aggregators");
  for (const federation of aggregators.slice(-100)) {
    const id = federation.aggregator_id;
    if (!cards.has(id)) {
      const card = createHtml("article");
      cards.set(id, {card, seen: "", isOpen: false});
      byId("federations").prepend(card);          // newest first
    }
    const entry = cards.get(id);
    const now = JSON.stringify({...federation, elapsed_s: 0});
    if (entry.seen === now && federation.state !== "training") continue;
    entry.seen = now;
    fillCard(entry, await fetchJson(`/aggregators/${encodeURIComponent(id)}`));
  }
  const count = (state) => aggregators.filter((one) => one.state === state).length;
  const open = aggregators.length - count("stopped");
  const queued = count("queued") ? ` ${count("queued")} queued,` : "";
  byId("summary").textContent =
    `${open} open, ${count("training")} training,${queued} ${aggregators.length} in all`;
  byId("empty").hidden = aggregators.length > 0;
  byId("leave").hidden = !storedKeys();
}

function forgetKeys() {
  sessionStorage.removeItem("fedray-keys");
  cards.clear();
  byId("federations").replaceChildren();
  byId("leave").hidden = true;
}

function showError(error) {
  const isUnauthorized = error.status === 401;
  const isWrongKey = isUnauthorized && storedKeys();
  if (isUnauthorized) forgetKeys();
  byId("keys").hidden = !isUnauthorized;
  byId("trouble").hidden = isUnauthorized && !isWrongKey;
  byId("trouble").textContent = isUnauthorized ? error.message
    : error.status ? error.message : "The service does not answer; trying again.";
  byId("summary").textContent = isUnauthorized ? "Keys are needed." : "Not connected.";
  return isUnauthorized;
}

async function poll() {
  clearTimeout(timer);
  try {
    await refresh();
    byId("trouble").hidden = byId("keys").hidden = true;
  } catch (error) {
    if (showError(error)) return;                // continues when keys are entered
  }
  timer = setTimeout(poll, document.hidden ? 10 * PERIOD_MS : PERIOD_MS);
}

byId("keys").addEventListener("submit", (event) => {
  event.preventDefault();
  const own = {client: byId("client").value.trim(), secret: byId("secret").value.trim()};
  sessionStorage.setItem("fedray-keys", JSON.stringify(own));
  byId("secret").value = "";
  poll();
});
byId("leave").addEventListener("click", () => { forgetKeys(); poll(); });
poll();
