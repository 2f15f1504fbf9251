"""Secret variables are taken out of the environment, wherever it is kept, and can be read again all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.processes.secrecy import SecretVariables
from tests.e2e.sidecar import ROOT

NAME = "OVERCOAT_TEST_SECRET"
CANARY = "canary-é4111"


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(NAME, CANARY)
    return NAME


class TestSecretVariables:
    def test_one_that_was_read_is_gone_from_the_environment_and_can_be_read_again(self, variable: str) -> None:
        secrets = SecretVariables()
        assert variable in secrets
        assert variable in os.environ  # that it is there was all that was asked
        assert [secrets[variable], secrets[variable]] == [CANARY, CANARY]
        assert variable not in os.environ
        assert variable in secrets
        assert set(secrets) == {variable, *os.environ}
        assert len(secrets) == len(os.environ) + 1

    def test_a_child_process_does_not_get_it(self, variable: str) -> None:
        secrets = SecretVariables()
        assert secrets[variable] == CANARY
        shown = subprocess.run(["env"], capture_output=True, check=True).stdout
        assert CANARY.encode() not in shown

    def test_what_is_forgotten_is_not_there(self, variable: str) -> None:
        secrets = SecretVariables()
        assert secrets[variable] == CANARY
        secrets.forget()
        assert variable not in secrets
        with pytest.raises(KeyError):
            secrets[variable]

    def test_what_was_never_there_is_not_either(self) -> None:
        assert "OVERCOAT_TEST_NOTHING" not in SecretVariables()
        with pytest.raises(KeyError):
            SecretVariables()["OVERCOAT_TEST_NOTHING"]


INSIDE = """
import os, sys
sys.path.append(sys.argv[1])
from proxy.processes.secrecy import SecretVariables
assert SecretVariables()["SECRET"] == "s" * 5000
assert os.environ["SECRET_TOO"] == "kept" and os.getenv("SECRE") == "kept"
sys.stdout.buffer.write(open("/proc/self/environ", "rb").read())
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the kernel shows it in /proc (Linux)")
def test_the_kernel_shows_nothing_of_it_either_and_all_the_rest() -> None:
    env = {"SECRE": "kept", "SECRET": "s" * 5000, "SECRET_TOO": "kept", "LAST": "=SECRET=x"}
    done = subprocess.run([sys.executable, "-c", INSIDE, str(ROOT)], env=env, capture_output=True, check=True)
    assert b"sssss" not in done.stdout
    assert {b"SECRE=kept", b"SECRET_TOO=kept", b"LAST==SECRET=x"} <= set(done.stdout.split(b"\0"))
