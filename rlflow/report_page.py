"""Style and script of the page: no network, no library; light and dark, wide and narrow."""

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --soft: #57606a; --rule: #d0d7de;
  --band: #f6f8fa; --mark: #0969da; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --paper: #0d1117; --ink: #e6edf3;
  --soft: #9198a1; --rule: #30363d; --band: #161b22; --mark: #58a6ff; } }
:root[data-theme=dark] { color-scheme: dark; --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1; --rule: #30363d;
  --band: #161b22; --mark: #58a6ff; }
:root[data-theme=light] { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
header { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: baseline; justify-content: space-between; }
h1 { font-size: 1.5rem; margin: .25rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3, h4 { font-size: 1rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
button, select { font: inherit; color: inherit; background: var(--band); border: 1px solid var(--rule);
  border-radius: 6px; padding: .2rem .6rem; cursor: pointer; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 1px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .6rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { background: var(--band); white-space: nowrap; }
th button { border: 0; background: none; padding: 0; font-weight: 600; text-align: left; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.name { font-weight: 600; white-space: nowrap; } .whole { white-space: nowrap; }
.headline { max-width: 44rem; } .sub { color: var(--soft); font-size: .85em; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em; }
.range { position: relative; height: 6px; min-width: 7rem; margin-top: .3rem; background: var(--rule);
  border-radius: 3px; }
.range i { position: absolute; height: 6px; border-radius: 3px; opacity: .55; }
.range b { position: absolute; top: -3px; width: 3px; height: 12px; margin-left: -1px; background: var(--ink); }
.unranked { color: var(--soft); }
.warning { border-left: 3px solid #D55E00; padding: .2rem .7rem; margin: .4rem 0; background: var(--band);
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.2rem; }
figure { margin: 0; border: 1px solid var(--rule); border-radius: 8px; padding: .8rem; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; margin-top: .6rem; }
figure img, figure video { width: 100%; height: auto; display: block; margin-top: .6rem; background: var(--band); }
figcaption { display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline; justify-content: space-between; }
.sample.large { grid-column: 1 / -1; } .enlarge { font-size: .85em; }
.completions td { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 5rem; font-size: .85em; }
pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85em; }
.notes { padding-left: 1.2rem; } .narrow { display: none; }
@media (max-width: 46rem) {
  .narrow { display: block; margin: .5rem 0; }
  table.board, table.board tbody, table.board tr, table.board td { display: block; width: 100%; }
  table.board thead { position: absolute; left: -9999px; }
  table.board tr { border: 1px solid var(--rule); border-radius: 8px; margin: .6rem 0; padding: .3rem .2rem; }
  table.board td { display: grid; grid-template-columns: 46% 54%; border: 0; padding: .2rem .6rem; }
  table.board td::before { content: attr(data-label); color: var(--soft); font-size: .85em; overflow-wrap: anywhere; }
  .scroll table:not(.board) td { white-space: nowrap; }
  figure { padding: .5rem; overflow-x: auto; }
  figure, .scroll { background:
    linear-gradient(to right, var(--paper) 50%, transparent) left / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--paper) 50%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to right, var(--soft), transparent) left / .7rem 100% no-repeat,
    linear-gradient(to left, var(--soft), transparent) right / .7rem 100% no-repeat; }
  figure svg { min-width: 30rem; } .enlarge { display: none; }
}
@media print { button, .narrow { display: none; } }
"""

SCRIPT = """
const table = document.querySelector("table.board"), body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells], select = document.querySelector("#sort");
function sortBy(index, direction) {
  const key = row => { const v = row.cells[index].dataset.value; return v === "" ? null : isNaN(v) ? v : Number(v); };
  const rows = [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return direction * (x < y ? -1 : x > y ? 1 : 0);
  });
  body.append(...rows);
  heads.forEach((h, i) => h.setAttribute("aria-sort",
    i !== index ? "none" : direction > 0 ? "ascending" : "descending"));
  select.value = index;
}
heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
  const first = head.dataset.first === "descending" ? -1 : 1, now = head.getAttribute("aria-sort");
  sortBy(index, now === "ascending" ? -1 : now === "descending" ? 1 : first);
}));
select.addEventListener("change", () => {
  const index = Number(select.value);
  sortBy(index, heads[index].dataset.first === "descending" ? -1 : 1);
});
document.querySelectorAll(".enlarge").forEach(button => button.addEventListener("click", () => {
  const large = button.closest("figure").classList.toggle("large");
  button.setAttribute("aria-pressed", large);
  button.textContent = large ? "shrink" : "enlarge";
}));
document.querySelector("#theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme || (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});
"""
