"""Each panel of the dashboard shows something: a real Prometheus that scrapes running sidecars answers each of its
expressions with data.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from docs.dashboard import ROWS, panels
from proxy.core.jose.keywriting import to_jwk
from proxy.core.who.clients import hash_password
from tests.e2e import wire
from tests.e2e.certificates import Authority
from tests.e2e.clients import curl
from tests.e2e.connection import RecordedRequest
from tests.e2e.mirrors import write_identity
from tests.e2e.receiver import Receiver
from tests.e2e.reloading import reload
from tests.e2e.sidecar import ROOT, Sidecar
from tests.e2e.test_alerts import Prometheus
from tests.e2e.upstream import PlainUpstream, TlsUpstream

DASHBOARD = ROOT / "config" / "grafana" / "overcoat.json"
HOSTS = dict.fromkeys(("pay.example", "never.example", "seen.example", "far.example", "fetched.example"), "127.0.0.1")
POLICY = """
    workers: {workers}
    listen:
      - forward://127.0.0.1:0
      - mirror://127.0.0.1:0?to=http://127.0.0.1:9&for=mirrored.example&cert=server.pem&key=server.key
    trust: {{roots: roots.pem, crls: {{files: [crl.pem]}}}}
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{kid: new, file: {key}, not_after: {soon}}}}}
      fetched: {{jwks: "https://pay.example:{port}/jwks.json", alg: ECDH-ES+A256KW}}
    clients: {{users: [{{name: ann, password_hash: "{hashed}"}}]}}
    rules:
      - name: pay
        hosts: [pay.example]
        pins: {{any_of: ["{pin}"], expires: {soon}}}
        client_certificate: {{cert: server.pem, key: {{file: server.key}}}}
        request: [{{encrypt: ["$.a"], key: pay}}]
      - {{name: fetched, hosts: [fetched.example], request: [{{encrypt: ["$.a"], key: fetched}}]}}
      - {{name: mirrored, hosts: [mirrored.example], response: [{{encrypt: ["$.a"], key: pay}}]}}
      - {{name: never, hosts: [never.example], plain_http: reject}}
      - {{name: seen, hosts: [seen.example], plain_http: reject, mode: observe}}
"""


def shown() -> list[dict[str, Any]]:
    """Return the panels of the file, without the rows' titles."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


class TestFile:
    def test_it_has_every_panel_with_a_question_and_each_once(self) -> None:
        found = shown()
        assert [panel["title"] for panel in found] == [panel.title for panel in panels()]
        assert len({panel["title"] for panel in found}) == len(found)
        assert all(panel["description"].endswith(("?", ".")) for panel in found)

    def test_its_source_is_the_variable_everywhere(self) -> None:
        dashboard = json.loads(DASHBOARD.read_text())
        names = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
        assert names == {"datasource": "datasource", "job": "query", "instance": "query", "rule": "query"}
        for panel in shown():
            for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
                assert source == {"type": "prometheus", "uid": "${datasource}"}
            for target in panel["targets"]:
                used = set(re.findall(r"\$(\w+)", target["expr"]))
                assert {"job", "instance"} <= used <= {"job", "instance", "rule", "__rate_interval"}

    def test_its_panels_lie_side_by_side(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(DASHBOARD.read_text())["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            assert all(x < 24 for x, _ in cells)
            taken |= cells
        assert len({panel["id"] for panel in json.loads(DASHBOARD.read_text())["panels"]}) == len(panels()) + len(ROWS)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("workers", [1, 2])
def test_every_expression_of_every_panel_returns_data(authority: Authority, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    receiver = Receiver("pay")
    write_identity(tmp_path, authority.issue("mirrored.example"))
    (tmp_path / "crl.pem").write_bytes(authority.crl())
    keys = json.dumps({"keys": [to_jwk(receiver.key, private=False)]}).encode()

    def respond(asked: RecordedRequest) -> bytes:
        return wire.response(200, keys if asked.target == "/jwks.json" else b"{}")

    with (
        TlsUpstream(authority, "pay.example", respond=respond) as upstream,
        PlainUpstream() as plain,
        Sidecar(
            POLICY.format(
                workers=workers,
                key=receiver.write_public(tmp_path),
                soon=(datetime.now(UTC) + timedelta(days=10)).date(),
                hashed=hash_password("secret", bytes(16)),
                pin=upstream.pin,
                port=upstream.port,
            ),
            tmp_path,
            authority=authority,
            hosts=HOSTS,
        ) as sidecar,
        Prometheus(folder) as prometheus,
    ):
        proxy = sidecar.proxy_url.replace("http://", "http://ann:secret@")

        def pass_some() -> None:
            body = ("-H", "Content-Type: application/json", "-d", '{"a": 1}')
            assert curl(*body, upstream.url(host="pay.example"), proxy=proxy).status == 200
            assert curl("http://never.example/", proxy=proxy).status == 403
            assert curl(plain.url(host="seen.example"), proxy=proxy).status == 200

        prometheus.scrape(sidecar)
        prometheus.wait_for_scrapes(sidecar)
        pass_some()
        reload(sidecar, result="unchanged")
        missing = {target["expr"]: panel["title"] for panel in shown() for target in panel["targets"]}

        def has_all() -> bool:
            pass_some()
            for expr in list(missing):
                query = re.sub(r"\$(job|instance|rule)", ".*", expr).replace("$__rate_interval", "30s")
                found = prometheus.get(f"query?query={quote(query)}")["result"]
                if any(not math.isnan(float(each["value"][1])) for each in found):
                    del missing[expr]
            return not missing

        try:
            prometheus.wait("data for every panel", has_all)
        except AssertionError:
            raise AssertionError(f"no data for {missing}") from None
