// Federations live: asks GET /aggregators every two seconds, and for the history of
// those that have changed. All that comes from the service is put in as text.
"use strict";

const EVERY_MS = 2000;
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 200, HEIGHT = 80;
const cards = new Map();            // aggregator_id -> {card, seen}
const keys = () => JSON.parse(sessionStorage.getItem("fedray-keys") || "null");
const at = (id) => document.getElementById(id);
let timer = 0;

function made(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside.map((part) => part instanceof Node ? part : String(part)));
  return element;
}

function drawn(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

async function get(path) {
  const own = keys();
  const headers = own ? {"X-IBM-Client-Id": own.client, "X-IBM-Client-Secret": own.secret} : {};
  const answer = await fetch(path, {headers, cache: "no-store"});
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.detail), {status: answer.status});
  return body;
}

const number = (value, digits = 4) => value == null ? "–" : value.toFixed(digits);
const percent = (value) => value == null ? "–" : (100 * value).toFixed(1) + " %";

function size(bytes) {
  if (bytes == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  for (; bytes >= 1000 && i < units.length - 1; i++) bytes /= 1000;
  return bytes.toFixed(i && bytes < 100 ? 1 : 0) + " " + units[i];
}

function frame(title, last) {
  const svg = drawn("svg", {
    viewBox: `-4 -6 ${WIDTH + 8} ${HEIGHT + 10}`, preserveAspectRatio: "none",
    role: "img", "aria-label": `${title} by round: ${last}`,
  });
  svg.append(drawn("line", {class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT}));
  const caption = made("figcaption", {}, made("span", {}, title), made("span", {}, last));
  return [svg, made("figure", {}, caption, svg)];
}

function curve(key, history, shown) {
  const points = history.filter((round) => round[key] != null).map((r) => [r.round, r[key]]);
  const ends = points.length > 1 ? [points[0], points[points.length - 1]] : points;
  const [svg, figure] = frame(key, ends.map((point) => shown(point[1])).join(" → ") || "–");
  if (!points.length) return figure;
  const values = points.map((point) => point[1]);
  const low = key === "accuracy" ? Math.min(...values, 0) : Math.min(...values);
  const high = key === "accuracy" ? 1 : Math.max(...values);
  const first = points[0][0], span = points[points.length - 1][0] - first || 1;
  const x = (round) => points.length === 1 ? WIDTH / 2 : (round - first) / span * WIDTH;
  const y = (value) => HEIGHT - (value - low) / (high - low || 1) * HEIGHT;
  const path = points.map(([round, value]) => `${x(round).toFixed(1)},${y(value).toFixed(1)}`);
  svg.append(drawn("polyline", {class: `line ${key}`, points: path.join(" ")}));
  const [end, value] = points[points.length - 1];
  const dot = {x1: x(end), x2: x(end), y1: y(value), y2: y(value), class: `dot ${key}`};
  svg.append(drawn("line", dot));
  return figure;
}

function bars(history) {
  const mean = history.length
    ? history.reduce((sum, round) => sum + round.bytes_moved, 0) / history.length : null;
  const [svg, figure] = frame("moved", mean == null ? "–" : `${size(mean)} a round`);
  const shown = history.slice(-100);
  const high = Math.max(1, ...shown.map((round) => round.bytes_moved));
  const step = WIDTH / Math.max(shown.length, 1);
  shown.forEach((round, i) => {
    const tall = round.bytes_moved / high * HEIGHT;
    svg.append(drawn("rect", {
      class: "moved", x: i * step + step * .15, width: step * .7, y: HEIGHT - tall, height: tall,
    }));
  });
  return figure;
}

function facts(federation) {
  const {metrics} = federation;
  const joined = federation.num_parties - federation.remaining_parties;
  const pairs = [
    ["parties", `${joined} of ${federation.num_parties}`],
    ["round", `${federation.round} of ${federation.rounds}`],
    ["loss", number(metrics.loss)],
    ["accuracy", percent(metrics.accuracy)],
    ["moved", size(metrics.bytes_moved ?? 0)],
  ];
  return made("dl", {class: "numbers"}, ...pairs.map(([name, value]) =>
    made("div", {}, made("dt", {}, name), made("dd", {}, value))));
}

function bar(federation) {
  const inner = made("span");
  inner.style.width = `${100 * federation.round / Math.max(1, federation.rounds)}%`;
  return made("div", {class: "bar", "aria-hidden": "true"}, inner);
}

function note(federation) {
  if (federation.error) return made("p", {class: "note bad"}, federation.error.detail);
  const now = federation.under_way;
  if (federation.state === "training") {
    if (!now || !now.stage) return made("p", {class: "note"}, "starting the parties");
    const late = Object.entries(now.troubled || {}).map(([who, why]) => `; ${who} ${why}`);
    const what = now.stage === "joining" ? "parties are reading their data"
      : `round ${now.round}: ${now.stage}, ${now.reported} of ${now.chosen} reported`;
    return made("p", {class: "note"}, what + late.join(""));
  }
  const names = federation.parties.map((party) => party.party_id).join(", ");
  return made("p", {class: "note"}, names ? `joined: ${names}` : "nobody has joined yet");
}

function filled(card, federation) {
  const {history} = federation;
  const title = `${federation.fusion_algorithm} · ${federation.model_type}`;
  const began = new Date(1000 * federation.created).toLocaleString();
  const kind = federation.state.split(" ")[0];
  card.replaceChildren(
    made("div", {class: "head"}, made("h2", {}, title),
      made("span", {class: `state ${kind}`}, federation.state)),
    made("p", {class: "note"}, made("code", {}, federation.aggregator_id), ` · ${began}`),
    facts(federation),
    bar(federation),
    note(federation),
  );
  if (!history.length) return;
  card.append(made("div", {class: "curves"},
    curve("loss", history, (value) => number(value, 3)),
    curve("accuracy", history, percent),
    bars(history)));
}

async function refresh() {
  const {aggregators} = await get("/aggregators");
  for (const federation of aggregators.slice(-100)) {
    const id = federation.aggregator_id;
    if (!cards.has(id)) {
      const card = made("article");
      cards.set(id, {card, seen: ""});
      at("federations").prepend(card);          // newest first
    }
    const known = cards.get(id);
    const now = JSON.stringify(federation);
    if (known.seen === now && federation.state !== "training") continue;
    known.seen = now;
    filled(known.card, await get(`/aggregators/${encodeURIComponent(id)}`));
  }
  const count = (state) => aggregators.filter((one) => one.state === state).length;
  const open = aggregators.length - count("stopped");
  at("summary").textContent =
    `${open} open, ${count("training")} training, ${aggregators.length} in all`;
  at("empty").hidden = aggregators.length > 0;
  at("leave").hidden = !keys();
}

function forget() {
  sessionStorage.removeItem("fedray-keys");
  cards.clear();
  at("federations").replaceChildren();
  at("leave").hidden = true;
}

function troubled(error) {
  const asked = error.status === 401;
  const wrong = asked && keys();
  if (asked) forget();
  at("keys").hidden = !asked;
  at("trouble").hidden = asked && !wrong;
  at("trouble").textContent = asked ? error.message
    : error.status ? error.message : "The service does not answer; trying again.";
  at("summary").textContent = asked ? "Keys are needed." : "Not connected.";
  return asked;
}

async function live() {
  clearTimeout(timer);
  try {
    await refresh();
    at("trouble").hidden = at("keys").hidden = true;
  } catch (error) {
    if (troubled(error)) return;                // goes on when keys are given
  }
  timer = setTimeout(live, document.hidden ? 10 * EVERY_MS : EVERY_MS);
}

at("keys").addEventListener("submit", (event) => {
  event.preventDefault();
  const own = {client: at("client").value.trim(), secret: at("secret").value.trim()};
  sessionStorage.setItem("fedray-keys", JSON.stringify(own));
  at("secret").value = "";
  live();
});
at("leave").addEventListener("click", () => { forget(); live(); });
live();
