"""The garbage collector of a serving process looks through little: while it does, no app is served.

With 300 rules each scrape of the metrics made it look through all that the process had, for 0.2 s.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.e2e.app import ask, fresh
from tests.e2e.certificates import Authority
from tests.e2e.sidecar import ROOT, Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

HOST = "pay.example"
MOST = 30_000  # objects; a process that has just started has 100 000
# Notes how many objects there are whenever more than the newest are looked through.
PROGRAM = """
import gc, sys
sys.path.insert(0, sys.argv.pop(1))
file = open(sys.argv.pop(1) + "/looked", "a", buffering=1)

def note(phase, info):
    if phase == "start" and info["generation"] > 0:
        print(sum(len(gc.get_objects(generation)) for generation in range(3)), file=file)

gc.callbacks.append(note)
from tests.e2e.named_hosts import install
install({"pay.example": "127.0.0.1"})
from overcoat.__main__ import main
main()
"""


def test_what_a_start_has_made_is_not_looked_through_again(authority: Authority, tmp_path: Path) -> None:
    program, looked = tmp_path / "program.py", tmp_path / "looked"
    program.write_text(PROGRAM)
    rules = "".join(f"  - {{name: r{number}, hosts: [h{number}.example]}}\n" for number in range(50))
    command = [sys.executable, "-P", str(program), str(ROOT), str(tmp_path)]
    upstream = fresh(lambda: TlsUpstream(authority, HOST))
    with upstream, Sidecar(f"rules:\n{rules}", tmp_path, authority=authority, command=command) as sidecar:
        assert ask(sidecar, upstream, HOST, method="GET").status == 200
        before = len(looked.read_text().split())

        def has_looked() -> bool:
            sidecar.metrics()
            return len(looked.read_text().split()) > before + 3

        wait_until(has_looked)
        found = [int(each) for each in looked.read_text().split()[before:]]
        assert max(found) < MOST, found
        assert ask(sidecar, upstream, HOST, method="GET").status == 200
