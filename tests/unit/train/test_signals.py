"""Stop signals."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from ftlab.errors import Stopped
from ftlab.train.signals import STOPPING, StopSignal

pytestmark = pytest.mark.usefixtures("handlers")


@pytest.fixture
def handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in STOPPING]
    yield
    assert before == [signal.getsignal(number) for number in STOPPING]


@pytest.mark.parametrize("number", STOPPING)
def test_a_second_signal_changes_nothing(number: signal.Signals) -> None:
    with StopSignal().caught() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == number.name


@pytest.mark.parametrize("number", STOPPING)
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    """As SIGHUP under nohup, and SIGINT in the background of a shell script."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignal().caught() as stop:
            os.kill(os.getpid(), number)
            assert not stop
    finally:
        signal.signal(number, before)


def test_a_signal_received_by_the_previous_handler_counts_too() -> None:
    with StopSignal().caught() as first:
        os.kill(os.getpid(), signal.SIGHUP)
        with StopSignal().caught() as second:
            assert second.name == first.name == "SIGHUP"
        with StopSignal().caught() as third:
            assert third


def attempts(number: signal.Signals) -> None:
    with suppress(Exception):
        os.kill(os.getpid(), number)
    pytest.fail("went on")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_at_once_if_nothing_would_be_lost(number: signal.Signals) -> None:
    """Libraries that try again after an exception do not keep the run."""
    with StopSignal().caught() as stop:
        with pytest.raises(Stopped, match=f"{number.name}: stopped while getting ready"), stop.at_once():
            attempts(number)
        os.kill(os.getpid(), number)  # what cleans up is left alone
        assert stop.name == number.name


def test_a_signal_ends_the_run_though_its_interrupt_was_swallowed() -> None:
    with StopSignal().caught() as stop, pytest.raises(Stopped), stop.at_once(), suppress(BaseException):
        os.kill(os.getpid(), signal.SIGINT)


def test_an_earlier_signal_ends_the_run_too() -> None:
    with StopSignal().caught() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("began")


def test_after_the_block_a_signal_waits_again() -> None:
    with StopSignal().caught() as stop:
        with stop.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"
