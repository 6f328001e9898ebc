"""Progress bars: lines, few and whole, where nobody watches; tqdm's own on a terminal."""

import io
import sys

import pytest

from l2a_ray.runtime import progress
from l2a_ray.runtime.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    """Return what a bar of a thousand steps writes, every one of which asks to be shown."""
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar(total=1000, desc="work", unit="step", mininterval=0) as bar:
        for step in range(1000):
            bar.set_postfix(loss=step)
            bar.update()
            bar.refresh()
        bar.write("a message", file=stream)
    return stream.getvalue()


def test_a_file_gets_the_first_line_the_messages_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch, io.StringIO()).split("\n")
    assert [line[:10] for line in lines if line] == ["work:   0%", "a message", "work: 100%"]
    assert "1000/1000" in lines[-3] and "loss=999" in lines[-3] and not any("\r" in line for line in lines)


def test_a_file_gets_a_line_as_often_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    assert told(monkeypatch, io.StringIO()).count("\n") > 1000


def test_a_terminal_is_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = told(monkeypatch, Terminal())
    assert drawn.count("\r") > 1000 and drawn.count("\n") <= 2
