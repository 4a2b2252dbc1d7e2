"""What the user sees: bars for people, lines for files, little when quiet."""

from __future__ import annotations

import io

import pytest

from utils import terminal
from utils.terminal import Terminal, clock


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.0)


def test_plain_lines(lines_at_once: None) -> None:
    stream = io.StringIO()
    with Terminal(stream=stream).progress("grpo", 4) as progress:
        progress.update(1, reward=0.123456, stage="x")
        progress.update(4, reward=1.0)
    first, last = stream.getvalue().splitlines()
    assert first == "grpo 1/4  0s so far, 0s left  reward 0.1235  stage x"
    assert last == "grpo 4/4  0s  reward 1"


def test_plain_lines_come_every_few_seconds_and_at_the_end() -> None:
    stream = io.StringIO()
    with Terminal(stream=stream).progress("sft", 100) as progress:
        for done in range(1, 101):
            progress.update(done)
    assert len(stream.getvalue().splitlines()) == 1


def test_quiet_keeps_warnings_and_tables(capsys: pytest.CaptureFixture[str], lines_at_once: None) -> None:
    stream = Tty()
    quiet = Terminal(quiet=True, stream=stream)
    quiet.say("hello")
    with quiet.progress("x", 1) as progress:
        progress.update(1)
    assert stream.getvalue() == ""
    quiet.warn("careful")
    assert capsys.readouterr().err == "warning: careful\n"
    quiet.table("result", ["name", "value"], [["a", 1.5], ["long name", 22]])
    assert stream.getvalue().splitlines() == ["result", "  name       value", "  ---------  -----"] + [
        "  a            1.5",
        "  long name     22",
    ]


def test_a_bar_on_a_terminal_shows_figures_and_lets_lines_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    stream = Tty()
    shown = Terminal(stream=stream)
    with shown.progress("grpo", 10) as progress:
        progress.update(5, reward=0.25)
        shown.say("a [bold]line[/bold]")
        progress.update(10, reward=0.75)
    text = stream.getvalue()
    assert "grpo" in text and "10/10" in text and "reward 0.75" in text and "a [bold]line[/bold]" in text
    assert "\x1b[3" not in text  # no colours
    shown.say("after")
    assert stream.getvalue().endswith("after\n")


def test_an_empty_table_and_zero_work() -> None:
    stream = io.StringIO()
    Terminal(stream=stream).table("none", ["a", "b"], [])
    assert stream.getvalue() == "none\n  a  b\n  -  -\n"
    with Terminal(stream=stream).progress("nothing", 0) as progress:
        progress.update(0)


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.9, 60, 185, 3600, 7625)] == [
        "0s",
        "59s",
        "1m00s",
        "3m05s",
        "1h00m",
        "2h07m",
    ]
