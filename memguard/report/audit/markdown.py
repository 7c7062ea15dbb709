"""The whole report as Markdown: the same blocks as the page, figures as the tables behind them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memguard.report.audit.blocks import (
    Alarm,
    Block,
    Bullets,
    Facts,
    Figure,
    Heading,
    Para,
    Pre,
    TableBlock,
)
from memguard.report.audit.chapters import chapters
from memguard.report.audit.data import AuditReport
from memguard.report.audit.verdict import audit_verdict

__all__ = ["escape_markdown", "markdown_table", "render_markdown"]

_MOST_POINTS = 12


def escape_markdown(text: str) -> str:
    r"""Text that Markdown shows as it is: no markup, no HTML, one line.

    Example:
        >>> print(escape_markdown("a|b <script> *x* `y` [z](u)"))
        a\|b &lt;script&gt; \*x\* \`y\` [z\](u)
    """
    text = re.sub(r"\s+", " ", text).strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"[\\|*`]|~(?=~)|(?<!\w)_|_(?!\w)|\](?=[(\[:])", r"\\\g<0>", text)
    return re.sub(r"^(?=[-+#=]|\d+[.)] )", r"\\", text)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: frozenset[int]) -> str:
    """A table; columns of words stand left, those of numbers right.

    Example:
        >>> print(markdown_table(["test", "n"], [["lira", "900"]], frozenset({0})))
        | test | n |
        | :-- | --: |
        | lira | 900 |
    """
    line = [":--" if i in words else "--:" for i in range(len(head))]
    body = [[escape_markdown(one) or " " for one in row] for row in (head, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (body[0], line, *body[1:]))


def render_markdown(report: AuditReport) -> str:
    """The report as Markdown text: everything that the page has, except pictures.

    Args:
        report: With exact counts; small cells are suppressed in the text.

    Example:
        >>> from memguard.report.audit.parts import SideCounts
        >>> side = SideCounts(n_patients=900, n_records=1400)
        >>> report = AuditReport(version="0.1.0", created="2026-01-31", members=side, held_out=side)
        >>> render_markdown(report).splitlines()[0]
        '# Privacy audit'
    """
    said = audit_verdict(report)
    parts = ["# Privacy audit", *(f"> **Alarm.** {escape_markdown(one)}" for one in said.alarms)]
    parts += [
        f"**{escape_markdown(said.headline)}**",
        escape_markdown(said.scope),
        escape_markdown(said.untested),
    ]
    for chapter in chapters(report):
        parts.append(f"## {chapter.number}. {escape_markdown(chapter.title)}")
        parts += [_block(block) for block in chapter.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Para):
        return escape_markdown(block.text)
    if isinstance(block, Alarm):
        return f"> **Alarm.** {escape_markdown(block.text)}"
    if isinstance(block, Heading):
        return f"### {escape_markdown(block.text)}"
    if isinstance(block, Facts):
        said = [
            (name, f"*{escape_markdown(text)}*" if open_ else escape_markdown(text))
            for name, text, open_ in block.rows
        ]
        return "\n".join(f"- {escape_markdown(name)}: {text}" for name, text in said)
    if isinstance(block, Bullets):
        title = [f"{escape_markdown(block.title)}:", ""] if block.title else []
        return "\n".join([*title, *(f"- {escape_markdown(item)}" for item in block.items)])
    if isinstance(block, Pre):
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", block.text)), default=0))
        return f"{escape_markdown(block.label)}:\n\n{fence}text\n{block.text}\n{fence}"
    if isinstance(block, Figure):
        return "\n\n".join([escape_markdown(block.caption), _table(block.table(_MOST_POINTS))])
    return _table(block)


def _table(block: TableBlock) -> str:
    text = [escape_markdown(block.caption), markdown_table(block.head, block.rows, block.words)]
    return "\n\n".join([*text, escape_markdown(block.note)] if block.note else text)
