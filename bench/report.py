"""The results of a run: values, ratios, tables and a picture."""

import html
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loads import LOADS
from peers import BEFORE, COLUMNS, NGINX_TLS13, OFF, OURS, PEERS, PLAINTEXT
from system import ROOT, fail

# The page that contains the short table, and the marker lines before and after the table.
PAGE = ROOT / "docs/performance.md"
PAGE_MARKS = ("<!-- bin/bench writes this table -->", "<!-- its end -->")
# The files that contain all figures as a page, all figures as JSON, and the ratios as a picture.
TABLE = ROOT / "bench/RESULTS.md"
DATA = ROOT / "bench/results.json"
PICTURE = ROOT / "bench/ratios.svg"

# The headings of the columns that divide a figure of the launcher by the same figure of another
# contender. The columns "off" use the launcher with its pool off. With TLS 1.3, nginx needs as much
# CPU time for a handshake as the launcher.
BEST_PEER = "ours / best peer"
QUOTIENTS = {
    "ours / plaintext": (OURS, PLAINTEXT),
    "off / before": (OFF, BEFORE),
    f"off / {NGINX_TLS13}": (OFF, NGINX_TLS13),
}
# The sizes in the picture, in pixels: the height of a row, the space to the left of the bars, and
# the length of a bar for the ratio 1. Bars for ratios above WIDEST are cut.
ROW_HEIGHT, LEFT, UNIT, WIDEST = 22, 370, 220, 2.0
BETTER, WORSE = "#2e9e5b", "#c9603f"


@dataclass(frozen=True)
class Ratio:
    """The launcher's median of a figure, divided by the best peer's median in the same run."""

    load: str
    figure: str
    ratio: float
    peer: str
    more_is_better: bool


@dataclass
class Results:
    """The measured values of all rounds, by load, contender and figure."""

    values: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)

    def add(self, load: str, contender: str, figures: Mapping[str, float | list[float]]) -> None:
        """Adds the figures of one measurement."""
        for figure, found in figures.items():
            values = self.values.setdefault(load, {}).setdefault(contender, {})
            values.setdefault(figure, []).extend(found if isinstance(found, list) else [found])

    def of(self, load: str, contender: str, figure: str) -> list[float]:
        """Returns the values of all rounds. The list is empty if the figure was not measured."""
        return self.values.get(load, {}).get(contender, {}).get(figure, [])

    def median(self, load: str, contender: str, figure: str) -> float | None:
        """Returns the median over all rounds."""
        values = self.of(load, contender, figure)
        return statistics.median(values) if values else None

    def ratio(self, load: str, figure: str) -> Ratio | None:
        """Returns the launcher's ratio, or `None` if the figure has no ratio or no values."""
        if not counts(load, figure):
            return None
        more_is_better = LOADS[load].more_is_better[figure]
        peers = {name: self.median(load, name, figure) for name in PEERS}
        measured = {name: median for name, median in peers.items() if median}
        ours = self.median(load, OURS, figure)
        if not measured or ours is None:
            return None
        best = (max if more_is_better else min)(measured, key=lambda name: measured[name])
        return Ratio(load, figure, ours / measured[best], best, more_is_better)

    def quotient(self, load: str, figure: str, heading: str) -> str:
        """Returns a figure's cell in a column of QUOTIENTS, which is empty without measurements."""
        one, other = (self.median(load, name, figure) for name in QUOTIENTS[heading])
        return f"{one / other:.2f}" if one is not None and other and counts(load, figure) else ""

    def quotients(self) -> list[str]:
        """Returns the headings of QUOTIENTS whose two contenders were measured."""
        names = {name for found in self.values.values() for name in found}
        return [heading for heading, pair in QUOTIENTS.items() if names.issuperset(pair)]

    def ratios(self) -> Iterator[Ratio]:
        """Returns all ratios, in the order of LOADS."""
        for load in LOADS.values():
            for figure in load.more_is_better:
                if found := self.ratio(load.name, figure):
                    yield found


def counts(load: str, figure: str) -> bool:
    """Returns whether the figure gets a ratio."""
    return load in LOADS and figure in LOADS[load].more_is_better


def number(value: float | None) -> str:
    """Formats a number with three significant digits, or as an integer from 1,000 on."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Formats the median, the minimum and the maximum of values."""
    if not values:
        return ""
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    ruler = "|" + " --- |" * len(heading)
    lines = [f"| {' | '.join(row)} |" for row in (heading, *rows)]
    return "\n".join([lines[0], ruler, *lines[1:]])


def table(results: Results) -> str:
    """Returns the table with every figure of every contender."""
    names = [name for name in COLUMNS if any(name in found for found in results.values.values())]
    headings = results.quotients()
    rows = []
    for load, contenders in results.values.items():
        figures = dict.fromkeys(figure for found in contenders.values() for figure in found)
        for figure in figures:
            cells = [spread(results.of(load, name, figure)) for name in names]
            ratio = results.ratio(load, figure)
            told = f"**{ratio.ratio:.2f}** ({ratio.peer})" if ratio else ""
            quotients = [results.quotient(load, figure, heading) for heading in headings]
            rows.append([load, figure, *cells, told, *quotients])
    return markdown(["load", "figure", *names, BEST_PEER, *headings], rows)


def short_table(results: Results) -> str:
    """Returns the table of ratios, with the launcher's median and the best peer's median."""
    headings = results.quotients()
    rows = []
    for found in results.ratios():
        ours, best = (
            number(results.median(found.load, name, found.figure)) for name in (OURS, found.peer)
        )
        peer = f"{best} ({found.peer})"
        ratio = f"{found.ratio:.2f}"
        quotients = [results.quotient(found.load, found.figure, heading) for heading in headings]
        rows.append([found.load, found.figure, ours, peer, ratio, *quotients])
    return markdown(["load", "figure", OURS, "best peer", BEST_PEER, *headings], rows)


def page_around_table() -> tuple[str, str]:
    """Returns the text of PAGE before and after the short table, including the marker lines."""
    start, end = PAGE_MARKS
    before, found, rest = PAGE.read_text().partition(start)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        fail(f"{PAGE.relative_to(ROOT)} must contain the lines {start} and {end}")
    return before + start, end + after


def _svg_text(x: float, y: float, text: str, extra: str = "") -> str:
    style = f'font-family="sans-serif" font-size="12"{extra}'
    return f'<text x="{x}" y="{y}" {style}>{html.escape(text)}</text>'


def picture(results: Results) -> str:
    """Returns an SVG picture with a bar for each ratio. The ratio 1 stands for the best peer."""
    rows = list(results.ratios())
    width, height = LEFT + UNIT * WIDEST + 150, ROW_HEIGHT * len(rows) + 62
    title = "Results of start-stunnel, divided by the best results of nginx, HAProxy and stunnel"
    legend = "green: better than every peer; for rates the bar shows peer / ours"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        _svg_text(8, 18, title, ' font-weight="bold"'),
        _svg_text(8, 34, legend, ' fill="#555555"'),
    ]
    top = 46
    for index, found in enumerate(rows):
        shown = 1 / found.ratio if found.more_is_better else found.ratio
        y = top + index * ROW_HEIGHT
        bar = min(shown, WIDEST) * UNIT
        colour = BETTER if shown <= 1 else WORSE
        place = f'x="{LEFT}" y="{y}" width="{bar:.1f}" height="16"'
        out.append(_svg_text(8, y + 13, f"{found.load}: {found.figure}"))
        out.append(f'<rect {place} fill="{colour}"/>')
        label = f"{shown:.2f} ({found.peer})"
        out.append(_svg_text(round(LEFT + bar + 6, 1), y + 13, label))
    x, bottom = LEFT + UNIT, top + len(rows) * ROW_HEIGHT
    line = f'x1="{x}" y1="42" x2="{x}" y2="{bottom}"'
    out.append(f'<line {line} stroke="#333333" stroke-dasharray="4 3"/>')
    return "\n".join([*out, "</svg>", ""])


def files(results: Results, rounds: int, versions: Mapping[str, str]) -> dict[Path, str]:
    """Returns the files that a full run writes, and their contents."""
    heading = f"# Benchmark\n\nMade by `bin/bench`; medians (minimum to maximum) of {rounds} rounds"
    listing = "\n".join(f"- {name}: {version}" for name, version in versions.items())
    ratios = [
        {
            "load": ratio.load,
            "figure": ratio.figure,
            "ratio": ratio.ratio,
            "best peer": ratio.peer,
        }
        for ratio in results.ratios()
    ]
    data = {"rounds": rounds, "versions": versions, "ratios": ratios, "values": results.values}
    before, after = page_around_table()
    return {
        TABLE: f"{heading}, on:\n\n{listing}\n\n{table(results)}\n",
        DATA: json.dumps(data, indent=1) + "\n",
        PICTURE: picture(results),
        PAGE: f"{before}\n\n{short_table(results)}\n\n{after}",
    }
