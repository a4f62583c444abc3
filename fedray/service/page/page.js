// The live page: polls GET /aggregators every two seconds, and the history of federations
// that have changed. Everything from the service is inserted as text, never as HTML.
"use strict";

const PERIOD_MS = 2000;
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 200, HEIGHT = 80;
const cards = new Map();            // aggregator_id -> {card, seen}
const storedKeys = () => JSON.parse(sessionStorage.getItem("fedray-keys") || "null");
const byId = (id) => document.getElementById(id);
let timer = 0;

function createHtml(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside.map((part) => part instanceof Node ? part : String(part)));
  return element;
}

function createSvg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

async function fetchJson(path) {
  const own = storedKeys();
  const headers = own ? {"X-IBM-Client-Id": own.client, "X-IBM-Client-Secret": own.secret} : {};
  const answer = await fetch(path, {headers, cache: "no-store"});
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.detail), {status: answer.status});
  return body;
}

const formatNumber = (value, digits = 4) => value == null ? "–" : value.toFixed(digits);
const formatPercent = (value) => value == null ? "–" : (100 * value).toFixed(1) + " %";

function formatBytes(bytes) {
  if (bytes == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  for (; bytes >= 1000 && i < units.length - 1; i++) bytes /= 1000;
  return bytes.toFixed(i && bytes < 100 ? 1 : 0) + " " + units[i];
}

function createFigure(title, last) {
  const svg = createSvg("svg", {
    viewBox: `-4 -6 ${WIDTH + 8} ${HEIGHT + 10}`, preserveAspectRatio: "none",
    role: "img", "aria-label": `${title} by round: ${last}`,
  });
  svg.append(createSvg("line", {class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT}));
  const caption = createHtml("figcaption", {}, createHtml("span", {}, title), createHtml("span", {}, last));
  return [svg, createHtml("figure", {}, caption, svg)];
}

function drawCurve(key, history, shown) {
  const points = history.filter((round) => round[key] != null).map((r) => [r.round, r[key]]);
  const ends = points.length > 1 ? [points[0], points[points.length - 1]] : points;
  const [svg, figure] = createFigure(key, ends.map((point) => shown(point[1])).join(" → ") || "–");
  if (!points.length) return figure;
  const values = points.map((point) => point[1]);
  const low = key === "accuracy" ? Math.min(...values, 0) : Math.min(...values);
  const high = key === "accuracy" ? 1 : Math.max(...values);
  const first = points[0][0], span = points[points.length - 1][0] - first || 1;
  const x = (round) => points.length === 1 ? WIDTH / 2 : (round - first) / span * WIDTH;
  const y = (value) => HEIGHT - (value - low) / (high - low || 1) * HEIGHT;
  const path = points.map(([round, value]) => `${x(round).toFixed(1)},${y(value).toFixed(1)}`);
  svg.append(createSvg("polyline", {class: `line ${key}`, points: path.join(" ")}));
  const [end, value] = points[points.length - 1];
  const dot = {x1: x(end), x2: x(end), y1: y(value), y2: y(value), class: `dot ${key}`};
  svg.append(createSvg("line", dot));
  return figure;
}

function drawBars(history) {
  const mean = history.length
    ? history.reduce((sum, round) => sum + round.bytes_moved, 0) / history.length : null;
  const [svg, figure] = createFigure("moved", mean == null ? "–" : `${formatBytes(mean)} a round`);
  const shown = history.slice(-100);
  const high = Math.max(1, ...shown.map((round) => round.bytes_moved));
  const step = WIDTH / Math.max(shown.length, 1);
  shown.forEach((round, i) => {
    const tall = round.bytes_moved / high * HEIGHT;
    svg.append(createSvg("rect", {
      class: "moved", x: i * step + step * .15, width: step * .7, y: HEIGHT - tall, height: tall,
    }));
  });
  return figure;
}

function createFacts(federation) {
  const {metrics} = federation;
  const joined = federation.num_parties - federation.remaining_parties;
  const pairs = [
    ["parties", `${joined} of ${federation.num_parties}`],
    ["round", `${federation.round} of ${federation.rounds}`],
    ["loss", formatNumber(metrics.loss)],
    ["accuracy", formatPercent(metrics.accuracy)],
    ["moved", formatBytes(metrics.bytes_moved ?? 0)],
  ];
  return createHtml("dl", {class: "numbers"}, ...pairs.map(([name, value]) =>
    createHtml("div", {}, createHtml("dt", {}, name), createHtml("dd", {}, value))));
}

function createProgressBar(federation) {
  const inner = createHtml("span");
  inner.style.width = `${100 * federation.round / Math.max(1, federation.rounds)}%`;
  return createHtml("div", {class: "bar", "aria-hidden": "true"}, inner);
}

function createNote(federation) {
  if (federation.error) return createHtml("p", {class: "note bad"}, federation.error.detail);
  const now = federation.under_way;
  if (federation.state === "training") {
    if (!now || !now.stage) return createHtml("p", {class: "note"}, "starting the parties");
    const late = Object.entries(now.troubled || {}).map(([who, why]) => `; ${who} ${why}`);
    const what = now.stage === "joining" ? "parties are reading their data"
      : `round ${now.round}: ${now.stage}, ${now.reported} of ${now.chosen} reported`;
    return createHtml("p", {class: "note"}, what + late.join(""));
  }
  const names = federation.parties.map((party) => party.party_id).join(", ");
  return createHtml("p", {class: "note"}, names ? `joined: ${names}` : "nobody has joined yet");
}

function fillCard(card, federation) {
  const {history} = federation;
  const title = `${federation.fusion_algorithm} · ${federation.model_type}`;
  const created = new Date(1000 * federation.created).toLocaleString();
  const kind = federation.state.split(" ")[0];
  card.replaceChildren(
    createHtml("div", {class: "head"}, createHtml("h2", {}, title),
      createHtml("span", {class: `state ${kind}`}, federation.state)),
    createHtml("p", {class: "note"}, createHtml("code", {}, federation.aggregator_id), ` · ${created}`),
    createFacts(federation),
    createProgressBar(federation),
    createNote(federation),
  );
  if (!history.length) return;
  card.append(createHtml("div", {class: "curves"},
    drawCurve("loss", history, (value) => formatNumber(value, 3)),
    drawCurve("accuracy", history, formatPercent),
    drawBars(history)));
}

async function refresh() {
  const {aggregators} = await fetchJson("/aggregators");
  for (const federation of aggregators.slice(-100)) {
    const id = federation.aggregator_id;
    if (!cards.has(id)) {
      const card = createHtml("article");
      cards.set(id, {card, seen: ""});
      byId("federations").prepend(card);          // newest first
    }
    const entry = cards.get(id);
    const now = JSON.stringify(federation);
    if (entry.seen === now && federation.state !== "training") continue;
    entry.seen = now;
    fillCard(entry.card, await fetchJson(`/aggregators/${encodeURIComponent(id)}`));
  }
  const count = (state) => aggregators.filter((one) => one.state === state).length;
  const open = aggregators.length - count("stopped");
  byId("summary").textContent =
    `${open} open, ${count("training")} training, ${aggregators.length} in all`;
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
