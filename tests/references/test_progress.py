"""How far it is."""

from __future__ import annotations

import io

from memguard.references.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_with_the_time_left():
    out = Terminal()
    with Progress(2, 10, stream=out) as bar:
        for _ in range(10):
            bar.batch()
        bar.finished("reference 0")
    assert "10/10" in out.getvalue() and "1 of 2 done" in out.getvalue() and "<" in out.getvalue()


def test_lines_are_few_and_say_the_time_left():
    out, now = io.StringIO(), [0.0]
    with Progress(2, 1000, stream=out, clock=lambda: now[0]) as bar:
        for _ in range(500):
            now[0] += 0.2
            bar.batch()
        bar.finished("reference 0")
    lines = out.getvalue().splitlines()
    assert len(lines) == 4, "every 30 of 100 seconds, and at the end of a reference"
    assert lines[-1] == "References: 1 of 2 done (reference 0), 1 min 40 s gone, 1 min 40 s left"


def test_nothing_is_shown_where_nothing_is_wanted_or_to_do():
    for references, shown in ((2, False), (0, True)):
        out = Terminal()
        with Progress(references, 10, shown=shown, stream=out) as bar:
            bar.batch()
            bar.finished("reference 0")
        assert out.getvalue() == ""
