"""The report of an evaluation: one HTML page with sortable tables and the best and worst clips playing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from .statistics import Interval
from .tables import Table, text_of


def evaluation_html(
    title: str, lead: str, tables: Sequence[Table], clips: Mapping[str, str], notes: Sequence[str] = ()
) -> str:
    """Return a page that holds everything it shows. ``clips`` are captions and the HTML of a clip's pictures."""
    template = Template((Path(__file__).parent / "evaluation.html.in").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        lead=escape(lead),
        contents="".join(f'<li><a href="#{table.name}">{escape(table.title)}</a></li>' for table in tables),
        tables="\n".join(map(_section, tables)),
        clips="".join(f"<figure><figcaption>{escape(said)}</figcaption>{made}</figure>" for said, made in clips.items())
        or "<p>None were drawn.</p>",
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
    )


def _section(table: Table) -> str:
    heads = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in table.headings)
    body = "".join(
        f"<tr>{''.join(_cell(cell, at, table.unit) for at, cell in enumerate(row))}</tr>" for row in table.rows
    )
    return (
        f'<section id="{table.name}"><h2>{escape(table.title)}</h2><p>{escape(table.note)}</p><div class="wide">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _cell(cell: object, place: int, unit: str) -> str:
    """Return a cell; what it is sorted by stands beside it."""
    value = cell.mean if isinstance(cell, Interval) else cell
    kind = "th scope='row'" if place == 0 else "td"
    sorted_by = f' data-value="{value}"' if isinstance(value, int | float) else ""
    mean, bracket, ends = text_of(cell, unit).partition(" [")
    between = f" <small>[{escape(ends)}</small>" if bracket else ""
    return f"<{kind}{sorted_by}>{escape(mean)}{between}</{kind.split()[0]}>"
