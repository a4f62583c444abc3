"""CSS of report.html: light and dark theme, narrow screens, print."""

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1b2027; --soft: #59636f; --line: #dce1e7; --band: #f1f3f6;
  --fused: #0072b2; --late: #d68f00; --failed: #c8400a; --refused: #a8408a;
  --rest: #98a2ae;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --ink: #e4e8ec; --soft: #9ca7b3; --line: #303842;
    --band: #1e252d; --fused: #4ea8e0; --late: #f0b429; --failed: #ff7a45;
    --refused: #e08cc4; --rest: #76818e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    Arial, sans-serif;
  -webkit-text-size-adjust: 100%; text-size-adjust: 100%;
}
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 3rem; }
h1, h2, p, dl, ul, figure, pre { margin: 0; padding: 0; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .1rem 0 .4rem; }
h1, dt, dd, pre, .note { overflow-wrap: anywhere; }
h2 { font-size: 1.125rem; line-height: 1.3; margin-bottom: .75rem; }
section { margin-top: 2.5rem; }
ul { list-style: none; }
dd { margin: 0; }
pre, code { font: .8125rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre {
  background: var(--band); border-radius: 6px; padding: .75rem 1rem;
  white-space: pre-wrap;
}
.small, figcaption span, .key, summary { color: var(--soft); font-size: .875rem; }
.scroll + .small, .picture + .small, .curves + .small { margin-top: .5rem; }
.note {
  margin-top: 1.5rem; padding: .75rem 1rem; white-space: pre-wrap;
  background: var(--band); border-left: 4px solid var(--late); border-radius: 4px;
}
.results {
  display: grid; grid-template-columns: repeat(4, auto); gap: 1rem;
  margin-top: 1.25rem; padding: 1rem 0; border: solid var(--line);
  border-width: 1px 0;
}
.results dt { color: var(--soft); font-size: .875rem; }
.results dd { font-size: 1.5rem; line-height: 1.3; font-weight: 600; }
.results dd, td { font-variant-numeric: tabular-nums; }
.curves { display: grid; grid-template-columns: 1fr 1fr; gap: 2rem 2.5rem; }
.curves figure { min-width: 0; break-inside: avoid; }
figcaption {
  display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem;
  margin-bottom: .5rem; font-size: .9375rem;
}
svg { display: block; width: 100%; }
.curves figure > svg * { stroke-linejoin: round; stroke-linecap: butt; }
.curves text { font-family: inherit !important; }
.fused, .apart { fill: var(--fused); }
.late { fill: var(--late); }
.rest, .other { fill: var(--rest); }
.m0 { fill: var(--fused); } .m1 { fill: var(--late); } .m2 { fill: var(--refused); }
.m3 { fill: var(--failed); } .m4 { fill: var(--rest); } .mean { fill: var(--ink); }
.failed, .refused {
  fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke;
}
.failed { stroke: var(--failed); }
.refused { stroke: var(--refused); }
.band { fill: var(--band); }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin-bottom: .75rem; }
figure .key { margin: .4rem 0 0; }
.key li { display: flex; align-items: center; gap: .35rem; }
.key svg { width: 1.1rem; height: 1.1rem; }
.picture {
  --row: 1.4rem; display: grid; grid-template-columns: auto 1fr;
  font-size: .8125rem;
}
.picture ul { max-width: min(14rem, 32vw); }
.picture li {
  height: var(--row); line-height: var(--row); overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis;
}
.picture .scroll { padding: 0 .75rem; }
.picture svg { height: calc(var(--n) * var(--row)); }
.picture .axis { height: 1.4rem; overflow: visible; }
.axis text { fill: var(--soft); text-anchor: middle; }
.scroll { overflow-x: auto; min-width: 0; }
.scroll:focus-visible { outline: 2px solid var(--fused); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .875rem; }
th, td {
  padding: .375rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line);
}
tr > :last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 500; }
tr > :first-child {
  position: sticky; left: 0; background: var(--paper); text-align: left;
  padding-left: 0; max-width: 14rem; overflow: hidden; text-overflow: ellipsis;
}
.none { color: var(--soft); opacity: .6; }
details { margin-top: 1.25rem; }
summary { cursor: pointer; }
details .scroll { margin-top: .5rem; }
.reasons dt { font-weight: 600; }
.reasons dt:not(:first-child) { margin-top: .75rem; }
.reasons dd { margin: .2rem 0; white-space: pre-wrap; font-size: .9375rem; }
.reasons dd > span { color: var(--soft); display: block; font-size: .875rem; }
.facts { display: grid; grid-template-columns: auto 1fr; gap: .15rem 1.25rem; }
.facts dd { font-variant-numeric: tabular-nums; }
.facts dt { color: var(--soft); }
@media (max-width: 44rem) {
  main { padding-top: 1.25rem; }
  .curves { grid-template-columns: 1fr; }
  .results { grid-template-columns: 1fr 1fr; }
  .results dd { font-size: 1.25rem; }
  tr > :first-child { max-width: 8rem; }
}
@media print {
  main { max-width: none; padding: 0; }
  :root { font-size: 9.5pt; }
  .picture { --row: 1.15rem; }
  details:not([open]) { display: none; }
  .scroll { overflow: visible; }
  .picture .scroll > div { min-width: 0 !important; }
  h2, thead, dt, .key { break-after: avoid; }
  tr, dt, dd, .note, .picture { break-inside: avoid; }
  th, td { padding: .2rem .35rem; }
}
"""
