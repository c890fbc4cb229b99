"""Progress: a bar in a terminal, few plain lines elsewhere."""

import io
import logging

import pytest
from rich.console import Console

from mmh_ray import progress as module
from mmh_ray.progress import progress

pytestmark = pytest.mark.fast


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def plain(monkeypatch, caplog):
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=False))
    caplog.set_level(logging.INFO, logger="mmh_ray.progress")
    return caplog


def test_lines_come_every_ten_seconds_and_at_the_end(plain, clock):
    with progress(100, "Preparing", unit="images") as advance:
        for _ in range(100):
            clock[0] += 0.3
            advance(1)
    assert len(plain.messages) == 3
    assert plain.messages[0] == "Preparing: 34/100 images, 3.3/s, 0:00:20 left"
    assert plain.messages[-1] == "Preparing: 100/100 images, 3.3/s, took 0:00:30"


def test_a_short_step_logs_one_line(plain):
    with progress(2, "Finding") as advance:
        advance()
        advance()
    assert len(plain.messages) == 1
    assert "Finding: 2/2 items" in plain.messages[0]


def test_slow_units_are_counted_by_the_minute(plain, clock):
    with progress(3, "Harmonizing", unit="images") as advance:
        clock[0] = 1.0
        advance(1)
        clock[0] = 31.0
        advance(1, note="data wait 3 %")
    assert plain.messages[0] == "Harmonizing: 2/3 images, 2.0/min, 0:00:30 left, data wait 3 %"


def test_the_time_left_does_not_depend_on_the_start_up(plain, clock):
    with progress(10, "Harmonizing", unit="images") as advance:
        clock[0] = 200.0  # Ray, the model, the first image
        advance(1)
        clock[0] = 210.0
        advance(5)
    assert plain.messages[0] == "Harmonizing: 1/10 images, 0.3/min"
    assert plain.messages[1] == "Harmonizing: 6/10 images, 30.0/min, 0:00:08 left"


def test_parallel_units_count_from_the_end_of_the_start_up(plain, clock):
    with progress(64, "Harmonizing", unit="images") as advance:
        clock[0] = 200.0
        advance(0)
        clock[0] = 230.0
        advance(32)
    assert plain.messages[1] == "Harmonizing: 32/64 images, 1.1/s, 0:00:30 left"


def test_unknown_total(plain, clock):
    with progress(None, "Finding", unit="images") as advance:
        clock[0] = 20.0
        advance(40)
    assert plain.messages[0] == "Finding: 40 images, 2.0/s"  # nothing but the start so far


def test_an_error_passes_and_the_last_line_tells_how_far(plain):
    def work():
        with progress(3, "Preparing", unit="images") as advance:
            advance(1)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        work()
    assert "Preparing: 1/3 images" in plain.messages[-1]


@pytest.mark.parametrize("total", [3, None])
def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch, caplog, total):
    screen = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    caplog.set_level(logging.INFO)
    with progress(total, "Preparing", unit="images") as advance:
        advance(2)
        advance(1)
    assert "Preparing" in screen.getvalue()
    assert ("3/3" if total else "3/?") in screen.getvalue()
    assert caplog.messages == []


def test_the_bar_of_slow_units_shows_the_time_left_at_the_average_rate(monkeypatch, clock):
    screen = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    with progress(11, "Harmonizing", unit="images") as advance:
        advance(0)
        for images in (3, 3, 4):  # workers side by side end at almost the same time
            clock[0] += 100.0
            advance(images)
    assert "0:00:30 left" in screen.getvalue()
