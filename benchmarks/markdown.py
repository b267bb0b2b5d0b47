"""Tables and paragraphs of Markdown."""


def markdown(titles: list[str], alignment: str, rows: list[list[str]]) -> str:
    rule = ["---:" if letter == "r" else "---" for letter in alignment]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, rule, *rows])


def join(*tables: str) -> str:
    return "\n\n".join(table for table in tables if table)
