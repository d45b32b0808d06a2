// The look of the report's page, light and dark. Colours of marks differ in lightness as well as in
// hue, and every kind of mark has a shape of its own, so that they can be told apart without colour.

/** The page's style sheet. */
export const STYLE = `
:root {
  color-scheme: light dark;
  --ground: #f7f7f5; --card: #ffffff; --ink: #1b1b19; --quiet: #62615c; --line: #e4e3de; --axis: #a9a79f;
  --wanted: #1f66c1; --wait: #d9541e; --arrived: #12805c; --sent: #8a8880; --hover: #f0efeb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #161615; --card: #1f1f1d; --ink: #f1f0ec; --quiet: #a9a79f; --line: #34342f; --axis: #6d6b64;
    --wanted: #6aa5f0; --wait: #f0793f; --arrived: #3fbf92; --sent: #97958c; --hover: #2a2a27;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; }
p { margin: 0 0 10px; max-width: 78ch; color: var(--quiet); }
p strong { color: var(--ink); }
.facts { max-width: none; color: var(--quiet); margin: 4px 0 0; font-size: 14px; overflow-wrap: anywhere; }
.warn { border-left: 3px solid var(--wait); padding: 6px 12px; margin: 14px 0 0; color: var(--ink); background: var(--card); max-width: none; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 18px 20px; margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 18px 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.tiles dt { color: var(--quiet); font-size: 13px; }
.tiles dd { margin: 0; font-size: 24px; font-weight: 600; line-height: 1.3; }
.tiles dd + dd { font-size: 13px; font-weight: 400; color: var(--quiet); line-height: 1.4; }
.bar-of-buttons { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin: 0 0 10px; color: var(--quiet); font-size: 13px; }
button, select, input { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--axis); border-radius: 5px; padding: 2px 10px; }
button:hover { background: var(--hover); }
:focus-visible { outline: 2px solid var(--wanted); outline-offset: 1px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; margin: 0 0 6px; padding: 0; font-size: 13px; color: var(--quiet); }
.legend svg { width: 22px; height: 12px; margin-right: 6px; vertical-align: -1px; }
.chart { touch-action: pan-y; user-select: none; }
.chart > svg { display: block; }
.time { cursor: crosshair; }
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--quiet); }
text.name { font: 11px ui-monospace, "SFMono-Regular", Menlo, "DejaVu Sans Mono", monospace; fill: var(--ink); }
.grid { stroke: var(--line); shape-rendering: crispEdges; }
.axis { stroke: var(--axis); shape-rendering: crispEdges; }
.ahead { fill: var(--arrived); fill-opacity: .3; }
.arrived { fill: var(--arrived); }
.wait, .before { fill: var(--wait); }
.wanted, .after { fill: var(--wanted); }
.touch { fill: var(--wanted); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.curve.needed { stroke: var(--wanted); }
.curve.came { stroke: var(--arrived); stroke-dasharray: 7 3; }
.curve.received { stroke: var(--sent); stroke-dasharray: 2 3; }
.chosen { fill: var(--wanted); fill-opacity: .15; }
#note { position: fixed; z-index: 2; pointer-events: none; max-width: min(480px, 90vw); background: var(--card); border: 1px solid var(--axis); border-radius: 5px; padding: 6px 10px; font-size: 13px; line-height: 1.4; box-shadow: 0 2px 10px rgb(0 0 0 / .18); }
#note div:first-child { font-weight: 600; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0 10px; white-space: nowrap; }
.orders { margin: 6px 0 18px; }
.orders th, .orders td { padding: 4px 10px; }
.orders th:first-child { text-align: left; padding-left: 0; font-weight: 400; }
.orders thead th { color: var(--quiet); font-weight: 400; }
.orders td.picture { width: 45%; padding: 4px 0; }
.orders svg { display: block; width: 100%; height: 14px; }
.scroll { max-height: 560px; overflow: auto; border: 1px solid var(--line); border-radius: 5px; }
.files { min-width: 760px; }
.files thead th { position: sticky; top: 0; z-index: 1; background: var(--card); box-shadow: inset 0 -1px var(--axis); padding: 0; }
.files th button { border: 0; border-radius: 0; width: 100%; padding: 6px 10px; text-align: right; font-weight: 600; background: none; cursor: pointer; }
.files th button::after { content: "\\2195"; color: var(--axis); margin-left: 4px; font-weight: 400; }
.files th[aria-sort=ascending] button::after { content: "\\2191"; color: inherit; }
.files th[aria-sort=descending] button::after { content: "\\2193"; color: inherit; }
.files td { height: 26px; border-bottom: 1px solid var(--line); }
.files td.gap { border: 0; padding: 0; height: 0; }
.files .path, .files th.path button { text-align: left; }
.files td.path { max-width: 0; width: 60%; min-width: 220px; overflow: hidden; text-overflow: ellipsis; font-family: ui-monospace, "SFMono-Regular", Menlo, "DejaVu Sans Mono", monospace; font-size: 12px; }
.files tbody tr:hover { background: var(--hover); }
#search { flex: 0 1 320px; padding: 4px 10px; }
@media (max-width: 640px) {
  main { padding: 20px 12px 40px; }
  section { padding: 14px 12px; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
  .tiles dd { font-size: 20px; overflow-wrap: anywhere; }
  .orders th, .orders td { padding: 4px 8px; }
  .orders tr > :nth-child(3), .orders tr > :nth-child(4) { display: none; }
  .orders th { white-space: normal; }
  .orders td.picture { width: 30%; }
}
@media print {
  body { background: none; }
  main { max-width: none; padding: 0; }
  section { break-inside: avoid-page; border: 0; padding: 12px 0; }
  .scroll { max-height: none; overflow: visible; border: 0; }
  .bar-of-buttons { display: none; }
}
`;
