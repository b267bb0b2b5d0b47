"""A report before it is Markdown or HTML: sections of paragraphs and tables, all of plain text."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Cell(NamedTuple):
    """Plain text and what it is: "" (nothing special), "best" of its row, or of the "paper"."""

    text: str
    style: str = ""


@dataclass
class Table:
    """
    Attributes:
        titles: of the columns.
        alignment: a letter a column, "l" or "r".
        rows: a cell a column each; plain text is a cell without a style.
        folded: if given, the table is hidden until this line is clicked.
    """

    titles: list[str | Cell]
    alignment: str
    rows: list[list[str | Cell]]
    folded: str | None = None


@dataclass
class Picture:
    """A PNG that lies beside the report, and what a reader who does not see it should know."""

    name: str
    description: str


@dataclass
class Section:
    title: str
    blocks: list[str | Table | Picture] = field(default_factory=list)


def as_cell(value: str | Cell) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def markdown(title: str, sections: list[Section]) -> str:
    """The report as GitHub renders it."""
    parts = [f"# {_escape(title)}"]
    for section in sections:
        parts.append(f"## {_escape(section.title)}")
        for block in section.blocks:
            if isinstance(block, str):
                parts.append(_escape(block))
            elif isinstance(block, Picture):
                parts.append(f"![{_escape(block.description)}]({block.name})")
            elif block.folded is None:
                parts.append(markdown_table(block))
            else:
                summary = _escape(block.folded)
                parts += [f"<details><summary>{summary}</summary>", markdown_table(block), "</details>"]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    rule = ["---:" if letter == "r" else "---" for letter in table.alignment]
    lines = [[_styled(as_cell(x)) for x in row] for row in [table.titles, *table.rows]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [lines[0], rule, *lines[1:]])


def _styled(cell: Cell) -> str:
    text = _escape(cell.text)
    mark = {"best": "**", "paper": "*"}.get(cell.style, "") if text else ""
    return f"{mark}{text}{mark}"


def _escape(text: str) -> str:
    for mark, escaped in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("`", "\\`")):
        text = text.replace(mark, escaped)
    return " ".join(text.split())
