"""A report as one HTML page that needs nothing else, style and picture included: part of `dnabert2 gue report`."""

import base64
import html

from .report_document import Picture, Section, Table, as_cell

# Sticky: the page's header, and the first column of every table, so that a row keeps its name when it is scrolled.
STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --page: #ffffff; --soft: #f4f5f7; --line: #d9dce1;
  --muted: #656b76; --accent: #1f5fa8; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6ea; --page: #15171a; --soft: #1f2226; --line: #363b42;
  --muted: #9aa1ac; --accent: #7fb2ee; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 4.5rem; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
header { position: sticky; top: 0; z-index: 2; padding: .6rem 1.2rem; background: var(--page);
  border-bottom: 1px solid var(--line); }
header h1 { margin: 0; font-size: 1.1rem; }
nav { display: flex; gap: 1rem; overflow-x: auto; white-space: nowrap; font-size: .85rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
main { max-width: 90rem; margin: 0 auto; padding: 0 1.2rem 4rem; }
h2 { margin: 2.2rem 0 .4rem; font-size: 1.25rem; }
p { max-width: 46rem; overflow-wrap: anywhere; }
img { display: block; width: 100%; max-width: 62rem; height: auto; background: #ffffff; }
.scroll { overflow-x: auto; margin: .8rem 0; border: 1px solid var(--line); border-radius: 4px; max-width: 100%;
  width: fit-content; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
td { white-space: nowrap; }
td.long { white-space: normal; min-width: 18rem; }
thead th { border-top: 0; background: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); }
thead th:first-child { background: var(--soft); }
tbody tr:hover td { background: var(--soft); }
.right { text-align: right; }
.best { font-weight: 700; }
.paper { font-style: italic; font-weight: 400; color: var(--muted); }
summary { cursor: pointer; color: var(--accent); }
"""
LONG = 40  # characters of a cell that may break


def page(title: str, sections: list[Section], pictures: dict[str, bytes]) -> str:
    """
    Args:
        pictures: the bytes of every PNG that a section shows, by name.

    Returns:
        The page. All text of the report is escaped.
    """
    links = "".join(
        f'<a href="#section-{i}">{html.escape(section.title)}</a>' for i, section in enumerate(sections, start=1)
    )
    body = "\n".join(
        f'<section id="section-{i}">\n<h2>{html.escape(section.title)}</h2>\n'
        + "\n".join(_block(block, pictures) for block in section.blocks)
        + "\n</section>"
        for i, section in enumerate(sections, start=1)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1>\n<nav>{links}</nav></header>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _block(block: str | Table | Picture, pictures: dict[str, bytes]) -> str:
    if isinstance(block, str):
        return f"<p>{html.escape(block)}</p>"
    if isinstance(block, Picture):
        encoded = base64.b64encode(pictures[block.name]).decode("ascii")
        return f'<img alt="{html.escape(block.description)}" src="data:image/png;base64,{encoded}">'
    head = "".join(_cell("th", *x) for x in zip(block.titles, block.alignment, strict=True))
    rows = "\n".join(
        f"<tr>{''.join(_cell('td', *x) for x in zip(row, block.alignment, strict=True))}</tr>" for row in block.rows
    )
    table = f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    if block.folded is None:
        return table
    return f"<details><summary>{html.escape(block.folded)}</summary>\n{table}\n</details>"


def _cell(tag: str, value, alignment: str) -> str:
    cell = as_cell(value)
    classes = [cell.style] if cell.style else []
    if alignment == "r":
        classes.append("right")
    elif tag == "td" and len(cell.text) > LONG:
        classes.append("long")
    marked = f' class="{" ".join(classes)}"' if classes else ""
    return f"<{tag}{marked}>{html.escape(cell.text)}</{tag}>"
