"""A sweep's report as one self-contained HTML page, and as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from ftlab.sweep import figures
from ftlab.sweep.figures import Sweep
from ftlab.sweep.tables import VERDICT, Table

# Okabe and Ito's colours, which are safe for colour-blind readers; the shades s0 to s4 differ in lightness.
STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --panel: #f6f7f9; --text: #1b1f24; --quiet: #57606a; --line: #d0d7de;
  --complete: #0072b2; --pruned: #c05000; --failed: #a4306e; --running: #00795a; --best: #0a0a0a; --on-bar: #ffffff;
  --s0: #d3d9e0; --s1: #b3c7db; --s2: #7ea6cf; --s3: #3c7fb8; --s4: #0a4f8a; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --panel: #1c2127; --text: #e6e9ec; --quiet: #9aa4ae;
  --line: #343b43; --complete: #56b4e9; --pruned: #e69f00; --failed: #ec83bd; --running: #2fbf94; --best: #ffffff;
  --on-bar: #101214; --s0: #323a43; --s1: #3d5871; --s2: #4a83ad; --s3: #63b2e2; --s4: #b5e1fb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 24px 32px 64px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 40px 0 8px; }
p { margin: 6px 0; } .quiet, figcaption, .note { color: var(--quiet); font-size: 13px; }
figure, .wide { margin: 8px 0; overflow-x: auto; } figcaption { margin-top: 4px; }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px;
  overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 14px 4px 0; text-align: right; white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; white-space: normal; vertical-align: bottom; }
a { color: inherit; }
th:first-child, td:first-child { text-align: left; }
.words th:last-child, .words td:last-child { text-align: left; white-space: normal; padding-left: 14px; }
tr { border-bottom: 1px solid var(--line); } tr.first td { font-weight: 700; }
.slices { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 8px; }
.slices svg { max-width: 100%; height: auto; }
.legend { color: var(--quiet); font-size: 13px; margin-top: 4px; }
.legend span { margin-right: 18px; white-space: nowrap; }
.legend svg { vertical-align: -2px; margin-right: 5px; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--text); }
svg .quiet { fill: var(--quiet); } svg .title { font-weight: 600; }
svg .on-bar { fill: var(--on-bar); font-weight: 600; }
svg .halo { paint-order: stroke; stroke: var(--back); stroke-width: 4px; stroke-linejoin: round; }
polyline { fill: none; } .grid { stroke: var(--line); } .axis { stroke: var(--quiet); }
.whisker { stroke: var(--complete); stroke-width: 1.5; opacity: .55; }
.best-line { stroke: var(--quiet); stroke-width: 1.5; stroke-dasharray: 5 4; }
.mark { stroke: var(--back); stroke-width: 1; fill: var(--complete); } .mark.pruned { fill: var(--pruned); }
.mark.running { fill: var(--running); } .mark.failed { stroke: var(--failed); stroke-width: 2.2; fill: none; }
.mark.best { stroke: var(--best); stroke-width: 2.5; } .mark.dim { opacity: .45; }
.curve { stroke: var(--complete); stroke-width: 1.6; opacity: .75; } .curve.pruned { stroke: var(--pruned); }
.curve.failed { stroke: var(--failed); } .curve.running { stroke: var(--running); stroke-dasharray: 6 3; }
.curve.best { stroke: var(--best); stroke-width: 3; opacity: 1; }
.path { stroke-width: 1.8; } .path.best { stroke-width: 3.5; } .s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); }
.s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); } .s4 { stroke: var(--s4); }
.bar { fill: var(--complete); } .bar.pruned { fill: var(--pruned); } .bar.failed { fill: var(--failed); }
.bar.running { fill: var(--running); } .bar.best { stroke: var(--best); stroke-width: 2.5; }
.curve:hover, .path:hover { stroke: var(--best); stroke-width: 4; opacity: 1; }
"""


@dataclass(frozen=True)
class Page:
    """The content of both forms, in order."""

    title: str
    lines: Sequence[str]  # sentences below the title
    commands: Sequence[tuple[str, str]]  # purpose and command
    best: Sequence[str]  # the best configuration, an override each
    tables: Sequence[Table]
    sweep: Sweep


def html(page: Page) -> str:
    """The page: figures are inline SVG, light or dark as the reader's system is; no script, no network."""
    body = "\n".join(
        [*_head(page), *map(_table, page.tables[:1]), *_figures(page.sweep), *map(_table, page.tables[1:])]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _head(page: Page) -> Iterator[str]:
    yield f"<h1>{escape(page.title)}</h1>"
    yield from (f"<p>{escape(line)}</p>" for line in page.lines)
    if page.best:
        yield "<h2>Best configuration</h2><pre>" + escape("\n".join(page.best)) + "</pre>"
    for what, command in page.commands:
        yield f'<p class="quiet">{escape(what)}</p><pre>{escape(command)}</pre>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(title).replace('/', '/<wbr>')}</th>" for title in table.head)
    rows = "\n".join(
        f"<tr{' class=first' if i == 0 and table.head[0] == 'rank' else ''}>"
        + "".join(f"<td>{cell}</td>" for cell in _cells(table, row))
        + "</tr>"
        for i, row in enumerate(table.rows)
    )
    words = ' class="words"' if table.head[-1] in (VERDICT, "cause") else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    return f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table{words}>{inside}</table></div>\n{notes}'


def _cells(table: Table, row: list[str]) -> Iterator[str]:
    """The cells of a row; the number of a trial that has a folder links to it."""
    for title, cell in zip(table.head, row, strict=True):
        place = table.links.get(cell) if title == "trial" else None
        yield escape(cell) if place is None else f'<a href="{escape(place)}">{escape(cell)}</a>'


CAPTIONS = {
    "Pareto front": "Ringed and numbered trials are on the Pareto front: no other trial is better in one objective "
    "without being worse in another. The dashed line is the edge of the front.",
    "Parallel coordinates": "One line per completed trial; darker lines (in dark mode: lighter lines) rank higher. The "
    "thick line is the best trial.",
    "Learning curves": "One line per trial: the metric on the validation split at each evaluation during training.",
    "History": "Completed trials by number, with their 95 % interval where one is known. The dashed line is the best "
    "value so far. Marks below the axis are trials that ended without a value.",
    "Timeline": "One row per worker and one bar per trial, labelled with the trial's number.",
}


def _figures(sweep: Sweep) -> Iterator[str]:
    drawn = {
        "Pareto front": figures.pareto(sweep),
        "Parallel coordinates": figures.parallel_coordinates(sweep),
        "Learning curves": figures.learning_curves(sweep) + _legend(sweep),
        "History": figures.history(sweep) + _legend(sweep),
        "Timeline": figures.timeline(sweep) + _legend(sweep),
    }
    for title, figure in drawn.items():
        if figure.startswith("<svg"):
            yield f"<h2>{title}</h2>\n<figure>{figure}<figcaption>{CAPTIONS[title]}</figcaption></figure>"
    slices = figures.slices(sweep)
    if slices:
        inside = "\n".join(svg for _, svg in slices)
        yield f'<h2>{escape(sweep.objectives[0])} by parameter</h2>\n<div class="slices">{inside}</div>'
        yield '<p class="note">One mark per completed trial; the ringed mark is the best trial.</p>'


CIRCLE = "M1.5 6a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z"
KEYS = {
    "complete": ("complete", CIRCLE),
    "pruned": ("pruned", "M1.5 2.5h9l-4.5 8z"),
    "failed": ("failed", "M2 2l8 8m0 -8l-8 8"),
    "running": ("running", "M2 2h8v8h-8z"),
    "best": ("complete best", CIRCLE),
}


def _legend(sweep: Sweep) -> str:
    """The legend: shape and colour of each state that occurs."""
    there: set[str] = {entry.state for entry in sweep.entries}
    if sweep.done and len(sweep.objectives) == 1:
        there.add("best")
    keys = [
        f'<span><svg width="12" height="12"><path class="mark {style}" d="{path}"/></svg>{state}</span>'
        for state, (style, path) in KEYS.items()
        if state in there
    ]
    return f'<div class="legend">{"".join(keys)}</div>'


def markdown(page: Page) -> str:
    """The page as Markdown, without the figures."""
    parts = [f"# {page.title}", *page.lines]
    if page.best:
        parts += ["## Best configuration", "```\n" + "\n".join(page.best) + "\n```"]
    parts += [f"{what}:\n\n```\n{command}\n```" for what, command in page.commands]
    for table in page.tables:
        parts += [f"## {table.title}", _pipes(table), *table.notes]
    return "\n\n".join(parts) + "\n"


def _pipes(table: Table) -> str:
    rows = [table.head, [("---" if i == 0 else "---:") for i in range(len(table.head))], *table.rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows
    )
