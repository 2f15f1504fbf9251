"""Signals are taken over before anything else of a start that takes time."""

from __future__ import annotations

import collections
import os
import signal
from types import SimpleNamespace

import click
import pytest

from proxy import cli
from proxy.processes.signals import Signals


@pytest.mark.parametrize(
    ("name", "order"), [("serve", ["signals", "proxy.commands.serve"]), ("check", ["proxy.commands.policy"])]
)
def test_those_of_serve_are_taken_over_before_its_imports_and_no_others(
    monkeypatch: pytest.MonkeyPatch, name: str, order: list[str]
) -> None:
    done: list[str] = []
    commands = {"serve": ("proxy.commands.serve", ""), "check": ("proxy.commands.policy", "")}

    def imported(name: str) -> SimpleNamespace:
        done.append(name)
        return holder

    holder = SimpleNamespace(serve=click.Command("serve"), check=click.Command("check"))
    monkeypatch.setattr(cli, "_COMMANDS", commands)
    monkeypatch.setattr(cli, "take_over_signals", lambda: done.append("signals"))
    monkeypatch.setattr(cli, "importlib", SimpleNamespace(import_module=imported))
    cli.main.resolve_command(click.Context(cli.main), [name])
    assert done == order


def test_one_that_comes_again_before_it_is_acted_on_asks_for_nothing_more() -> None:
    signals = object.__new__(Signals)
    signals.descriptor, signals._wake = os.pipe()
    os.set_blocking(signals.descriptor, False)
    signals._come = collections.deque([signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP])
    assert signals.take() == [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM]
    assert signals.take() == []
    os.close(signals._wake)
    os.close(signals.descriptor)
