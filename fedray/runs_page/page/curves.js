// Elements, texts of numbers, and curves as SVG. Whatever comes from the server is inserted
// as text, never as HTML.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 200, HEIGHT = 80;
const N_BARS = 100;                 // of one figure, the last ones
// what a line obeys and what turns the words around it about, as fedray/untrusted_text.py
const HARMFUL = /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g;

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

const formatNumber = (value, digits = 4) => value == null ? "–" : value.toFixed(digits);
const formatShort = (value) => value == null ? "–" : String(Number(value.toPrecision(3)));
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
    role: "img", "aria-label": escapeText(`${title} by ${axes.over || "round"}: ${last}`),
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
    const label = createHtml("span", {class: "x"}, axes.formatX ? axes.formatX(value) : value);
    label.style.left = `${100 * axes.x(value) / WIDTH}%`;
    plot.append(label);
  }
  const caption = createHtml("figcaption", {}, createHtml("span", {}, title), createHtml("span", {}, last));
  return [svg, createHtml("figure", {}, caption, plot)];
}

// Axes around points [x, y] of all series; a share goes from 0 to 1.
function fitAxes(points, isShare) {
  const xs = points.map((point) => point[0]), values = points.map((point) => point[1]);
  const first = Math.min(...xs, Infinity), end = Math.max(...xs, -Infinity);
  const low = isShare ? 0 : Math.min(...values), high = isShare ? 1 : Math.max(...values);
  if (!points.length) return {x: () => 0, y: () => 0, xTicks: [], yTicks: []};
  const x = (value) => end === first ? WIDTH / 2 : (value - first) / (end - first) * WIDTH;
  const y = (value) => high === low ? HEIGHT / 2 : (high - value) / (high - low) * HEIGHT;
  return {x, y, first, end, xTicks: findTicks(first, end, true), yTicks: findTicks(low, high)};
}

const pathOf = (points, axes) =>
  points.map(([x, y]) => `${axes.x(x).toFixed(1)},${axes.y(y).toFixed(1)}`).join(" ");

function drawLine(svg, points, axes, className) {
  if (!points.length) return;
  svg.append(createSvg("polyline", {class: `line ${className}`, points: pathOf(points, axes)}));
  const x = axes.x(points.at(-1)[0]), y = axes.y(points.at(-1)[1]);
  svg.append(createSvg("line", {x1: x, x2: x, y1: y, y2: y, class: `dot ${className}`}));
}

// One metric of a run by round; series: [label, rounds, values], one for each global model.
function drawCurve(key, series) {
  const isShare = key === "accuracy";
  const format = isShare ? formatPercent : (value) => formatNumber(value, 3);
  const drawn = series.map(([label, rounds, values]) => [label, rounds
    .map((round, i) => [round, values[i]]).filter((point) => point[1] != null)])
    .filter(([, points]) => points.length);
  const axes = fitAxes(drawn.flatMap(([, points]) => points), isShare);
  axes.formatY = isShare ? (value) => `${Math.round(100 * value)} %` : formatShort;
  const points = drawn.length === 1 ? drawn[0][1] : [];
  const ends = points.length > 1 ? [points[0], points.at(-1)] : points;
  const last = drawn.length > 1 ? `${drawn.length} models`
    : ends.map((point) => format(point[1])).join(" → ") || "–";
  const [svg, figure] = createFigure(key, last, axes);
  const known = ["loss", "accuracy"].includes(key) ? key : "other";
  drawn.forEach(([, own], i) => drawLine(svg, own, axes, drawn.length > 1 ? `s${i % 10}` : known));
  return figure;
}

function drawBars(rounds, bytes) {
  if (!bytes.length || bytes.some((value) => value == null)) return "";
  const mean = bytes.reduce((sum, value) => sum + value, 0) / bytes.length;
  const drawn = bytes.slice(-N_BARS), xs = rounds.slice(-N_BARS);
  const high = Math.max(1, ...drawn);
  const step = WIDTH / drawn.length;
  const place = (round) => xs.findLastIndex((one) => one <= round);
  const axes = {
    x: (round) => (place(round) + .5) * step, y: (value) => HEIGHT - value / high * HEIGHT,
    xTicks: findTicks(xs[0], xs.at(-1), true), yTicks: findTicks(0, high), formatY: formatBytes,
  };
  const [svg, figure] = createFigure("moved", `${formatBytes(mean)} a round`, axes);
  drawn.forEach((value, i) => {
    const top = axes.y(value);
    svg.append(createSvg("rect", {
      class: "moved", x: i * step + step * .15, width: step * .7, y: top, height: HEIGHT - top,
    }));
  });
  return figure;
}

// Means of several variants with a band of one deviation; series: {label, x, mean, deviation}.
function drawBands(title, over, formatX, series) {
  const rows = series.map((one) => one.x.map((x, i) => [x, one.mean[i], one.deviation[i] ?? 0])
    .filter((row) => row[0] != null && row[1] != null));
  const ends = rows.flat().flatMap(([x, y, d]) => [[x, y - d], [x, y + d]]);
  const axes = fitAxes(ends, false);
  Object.assign(axes, {formatX, formatY: formatShort, over});
  if (over !== "rounds") axes.xTicks = axes.first == null ? [] : findTicks(axes.first, axes.end);
  const [svg, figure] = createFigure(title, `over ${over}`, axes);
  rows.forEach((own, i) => {
    const band = [...own.map(([x, y, d]) => [x, y + d]), ...own.map(([x, y, d]) => [x, y - d]).reverse()];
    if (own.some((row) => row[2])) {
      svg.append(createSvg("polygon", {class: `band s${i % 10}`, points: pathOf(band, axes)}));
    }
    drawLine(svg, own, axes, `s${i % 10}`);
  });
  return figure;
}

function createLegend(labels) {
  return createHtml("ul", {class: "legend"}, ...labels.map((label, i) =>
    createHtml("li", {}, createHtml("i", {class: `s${i % 10}`}), createHtml("bdi", {}, label))));
}
