"""One table, drawn as text or as HTML: what plans, differences and comparisons are shown in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table.

    Attributes:
        title: what it is.
        header: a name for each column; empty for facts, label and text.
        rows: cells, as many as columns.
        right: columns that hold numbers, set to the right.
        more: a line below it: what was left out, a sum; "" for none.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    more: str = ""

    def text(self) -> str:
        """Columns in line, two spaces between."""
        cells = [self.header, *self.rows] if self.header else list(self.rows)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [self.title] if self.title else []
        for row in cells:
            padded = (
                c.rjust(w) if i in self.right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            lines.append(("  " + "  ".join(padded)).rstrip())
        if self.more:
            lines.append("  " + self.more)
        return "\n".join(lines)

    def html(self) -> str:
        """A `<table>`; everything escaped."""
        head = "".join(self._cell("th", i, c) for i, c in enumerate(self.header))
        body = "".join(
            "<tr>" + "".join(self._cell("td", i, c) for i, c in enumerate(row)) + "</tr>" for row in self.rows
        )
        foot = f'<tfoot><tr><td colspan="{self._width}">{escape(self.more)}</td></tr></tfoot>' if self.more else ""
        caption = f'<caption style="text-align:left;font-weight:bold">{escape(self.title)}</caption>'
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"

    def _cell(self, tag: str, column: int, text: str) -> str:
        side = "right" if column in self.right else "left"
        return f'<{tag} style="text-align:{side}">{escape(text)}</{tag}>'

    @property
    def _width(self) -> int:
        return max(map(len, [self.header, *self.rows]), default=1)


class InTables:
    """What is shown in tables, as text and in a notebook."""

    __slots__ = ()

    def _tables(self) -> Iterable[Table]:
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n\n".join(t.text() for t in self._tables())

    def _repr_html_(self) -> str:
        return "<div>" + "".join(t.html() for t in self._tables()) + "</div>"
