"""The pages' common look: colours in light and dark, type, tables, pictures; and the switch between light and dark."""

from __future__ import annotations

# Contrast of every text colour on both surfaces is at least 4.5 : 1 (a test computes it).
LIGHT = {
    "paper": "#fbfbf9", "card": "#ffffff", "soft": "#f2f2ee", "line": "#dedfd9", "ink": "#1d2024", "muted": "#5a606a",
    "found": "#1f5fbf", "absent": "#5a606a", "failed": "#8a5a00", "invalid": "#b3261e", "better": "#1a6b45",
    "base": "#6a7280", "random": "#a86400", "never": "#1a7f54",
    "edit0": "#2f5fd0", "edit1": "#9a3fb5", "edit2": "#c2402f", "edit3": "#0b7c86",
}  # fmt: skip
DARK = {
    "paper": "#14161a", "card": "#1b1e23", "soft": "#23272e", "line": "#363b44", "ink": "#e8eaee", "muted": "#a3abb8",
    "found": "#8db8ff", "absent": "#a3abb8", "failed": "#f0b95a", "invalid": "#ff9a90", "better": "#74d3a4",
    "base": "#a0a8b5", "random": "#e2a04a", "never": "#5cc795",
    "edit0": "#7ea6ff", "edit1": "#d391ea", "edit2": "#ff8d7c", "edit3": "#58c6cf",
}  # fmt: skip
TEXT_COLOURS = ("ink", "muted", "found", "absent", "failed", "invalid", "better")
SURFACES = ("paper", "card", "soft")


def _variables(colours: dict[str, str]) -> str:
    return ";".join(f"--{name}:{value}" for name, value in colours.items())


# The chart of update norms, here and on the demo's page.
CHART = """.chart{max-width:760px;width:100%;height:auto;font:12px system-ui}.chart line{stroke:var(--line)}
.chart text{fill:var(--muted);text-anchor:middle}.chart .tick{text-anchor:end}
.chart .text rect{fill:var(--text)}.chart .cross rect{fill:var(--cross)}"""

_MARKS = "\n".join(
    f".{arm}{{--arm:var(--{arm})}}" for arm in ("base", "random", "never", "edit0", "edit1", "edit2", "edit3")
)

STYLE = (
    f"""
:root{{{_variables(LIGHT)};--text:var(--edit0);--cross:var(--random);color-scheme:light}}
@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{_variables(DARK)};color-scheme:dark}}}}
:root[data-theme=dark]{{{_variables(DARK)};color-scheme:dark}}
{_MARKS}
{CHART}
"""
    + """
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
overflow-wrap:anywhere}
main,header>div{max-width:1120px;margin:0 auto;padding:0 24px}
header>div{padding-top:40px}main{padding-bottom:96px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.01em;margin:0 0 6px;font-weight:650;text-wrap:balance}
h2{font-size:21px;line-height:1.3;margin:0 0 6px;font-weight:640}h3{font-size:16px;margin:0;font-weight:620}
p{margin:0 0 12px}section{padding-top:52px}.lead,.note{color:var(--muted);max-width:72ch}.note{font-size:14px}
.eyebrow{font-size:13px;color:var(--muted);margin:0 0 10px;display:flex;gap:12px;justify-content:space-between}
button{font:inherit;font-size:13px;color:var(--ink);background:var(--card);border:1px solid var(--line);
border-radius:999px;padding:3px 14px;cursor:pointer}
a{color:inherit;text-underline-offset:3px}:focus-visible{outline:2px solid var(--found);outline-offset:2px}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;margin:18px 0 0;font-size:14px;color:var(--muted)}
.num,td,.rate{font-variant-numeric:tabular-nums}small{font-size:13px;color:var(--muted)}
code,.hash{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--soft);border-radius:10px;padding:12px 14px;margin:0 0 16px;white-space:pre-wrap}
.outcomes{display:grid;gap:20px;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));padding-top:28px}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:22px 24px;min-width:0}
.claim{font-size:22px;line-height:1.35;font-weight:560;letter-spacing:-.005em;margin:4px 0 14px;text-wrap:pretty}
.claim b{font-weight:680}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:18px 48px}
.columns .note{margin:6px 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(94px,1fr));gap:14px;align-content:start}
.tiles div{min-width:0}.tiles dt{font-size:13px;color:var(--muted)}.tiles dd{margin:0;font-size:20px;font-weight:620}
.tiles dd small{display:block;font-weight:400}dl{margin:0}
.warnings{border-left:4px solid var(--failed);background:var(--soft);border-radius:0 10px 10px 0;padding:14px 20px;
margin-top:28px}.warnings h2{font-size:16px}.warnings ul{margin:6px 0 0;padding-left:18px}
.plot{display:block;width:100%;height:auto;max-width:440px;font:12.5px system-ui,sans-serif;font-variant-numeric:tabular-nums}
.plot text{fill:var(--ink)}.plot .soft{fill:var(--muted)}.plot .grid{stroke:var(--line)}
.plot .bar{fill:var(--arm)}.plot .bar.full{opacity:.28}.plot .whisker{stroke:var(--arm);stroke-width:1.6;fill:none}
.plot .mark,.key .mark{fill:var(--arm);stroke:var(--card);stroke-width:1}
.plot .never .mark,.key .never .mark{fill:var(--card);stroke:var(--arm);stroke-width:2.4}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:28px 40px;align-items:start;
margin-top:18px}.plots h3{margin-bottom:6px}.plots>.wide{margin-top:0}figure{margin:0;min-width:0}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;margin:12px 0 0;font-size:14px}
.key svg{width:14px;height:14px;vertical-align:-2px;margin-right:6px}
.wide{overflow-x:auto;margin:14px 0 0;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;overflow-wrap:normal}caption{text-align:left;color:var(--muted);font-size:14px;
padding:0 0 8px}td,th{text-align:left;padding:9px 16px 9px 0;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{font-size:13px;color:var(--muted);font-weight:500;vertical-align:bottom}tbody th{font-weight:500}
td small{display:block;white-space:nowrap}td b{font-weight:620;white-space:nowrap}tbody th small{display:block;font-weight:400}
.wide tbody th:first-child{min-width:140px;max-width:240px}
.facts{table-layout:fixed}.facts th{width:34%;font-weight:400;color:var(--muted);overflow-wrap:anywhere}
.facts td{overflow-wrap:anywhere}
details{border-top:1px solid var(--line)}details:last-of-type{border-bottom:1px solid var(--line)}
summary{cursor:pointer;padding:14px 0;list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;align-items:baseline}
summary::-webkit-details-marker{display:none}
summary::before{content:"";flex:none;width:7px;height:7px;border:solid var(--muted);border-width:0 2px 2px 0;
transform:rotate(-45deg);margin-right:2px}details[open]>summary::before{transform:rotate(45deg)}
summary h3{flex:none;max-width:calc(100% - 30px)}details>*:not(summary){margin-bottom:18px}
.shots{--tile:76px;display:grid;gap:16px;align-items:start}
.shots .card{padding:14px 16px;border-radius:12px;overflow-x:auto}.shots p{font-size:14px;margin:0 0 8px;line-height:1.4}
.shots table{width:auto}.shots td,.shots th{border:0;padding:0 10px 8px 0;font-size:12px;line-height:1.3}
.shots thead th{max-width:var(--tile);overflow-wrap:anywhere}
.shots thead th:first-child{max-width:none;white-space:nowrap}
.shots tbody th{color:var(--muted);font-weight:400;padding-top:26px}
.shots img,.shots .gone{display:block;border-radius:8px;width:var(--tile);height:auto;background:var(--soft);
box-shadow:0 0 0 1px var(--line)}
.shots .gone{height:var(--tile);font-size:11px;color:var(--muted);padding:8px}
.verdict{display:block;width:var(--tile);margin-top:3px;overflow-wrap:anywhere}
.verdict i{font-style:normal;display:inline-block;width:14px;
font-weight:700}
.found{color:var(--found)}.absent{color:var(--absent)}.failed{color:var(--failed)}.invalid{color:var(--invalid)}
.better{color:var(--better)}.limits{max-width:76ch;padding-left:20px}.limits li{margin-bottom:8px}
footer{color:var(--muted);font-size:14px;margin-top:56px;border-top:1px solid var(--line);padding-top:16px}
@media(max-width:600px){main,header>div{padding-left:16px;padding-right:16px}header>div{padding-top:22px}
h1{font-size:25px}.claim{font-size:19px}section{padding-top:40px}.card{padding:18px 16px}.shots .card{padding:12px}
.shots{--tile:62px}.shots td,.shots th{padding-right:7px}.wide tbody th:first-child{min-width:104px;max-width:150px}}
@media print{button,nav{display:none}.card{break-inside:avoid}}
"""
)

# The switch keeps nothing: the page has no storage, and opens as the reader's system asks.
SCRIPT = """
(function(){var root=document.documentElement,button=document.getElementById("theme");
function dark(){return root.dataset.theme?root.dataset.theme==="dark":matchMedia("(prefers-color-scheme:dark)").matches}
function say(){button.textContent=dark()?"Light":"Dark"}
button.addEventListener("click",function(){root.dataset.theme=dark()?"light":"dark";say()});say();button.hidden=false})();
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">
<title>{title}</title><style>{style}</style></head><body>
<header><div><div class="eyebrow"><span>{eyebrow}</span>
<button id="theme" type="button" hidden aria-label="switch between light and dark">Dark</button></div>
<h1>{title}</h1><p class="lead">{lead}</p>{nav}</div></header>
<main>{body}<footer>{footer}</footer></main><script>{script}</script></body></html>
"""
