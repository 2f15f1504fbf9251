"""The contenders: configures and starts each proxy for a job. The rows (`bench.rows`) call it.

Rules of this module:

- Each runs on the proxy's core alone, with one worker, and writes no access log; Overcoat's decision lines, which
  cannot be switched off, go to /dev/null.
- Each verifies the upstream's certificate against the lab's CA and nothing else.
- The parts of the job that a contender cannot do are listed where it is started, and printed with its figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lab import HOST, NAME, Lab, LabError, Process, Unavailable, free_port, nginx_command
from bench.results import OVERCOAT

HERE = Path(__file__).resolve().parent
FIELDS = ("$.card.number", "$.card.cvv", "$.customer.ssn", "$.account.iban")

_FIXED = "one destination fixed in its configuration; no decision lines, no policy of hosts"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way from the client to the upstream.

    Attributes:
        name: what tables and charts call it.
        process: the proxy; None for no proxy at all.
        port: where it listens.
        is_forward: whether it takes absolute-form request targets (RFC 9112, section 3.2.2).
        ca_file: the CA that signs what it shows to apps whose https it inspects.
        leaves_out: what it does not do of the job.
    """

    name: str
    process: Process | None
    port: int
    is_forward: bool = True
    ca_file: Path | None = None
    leaves_out: str = ""

    def target(self, path: str) -> str:
        """Return the request target for a path."""
        return f"http://{HOST}{path}" if self.is_forward else path

    @property
    def running(self) -> Process:
        """The proxy's process.

        Raises:
            LabError: there is none.
        """
        if self.process is None:
            raise LabError(f"{self.name} has no process")
        return self.process


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is to do.

    Attributes:
        pins: check the upstream's key.
        fields: encrypt four fields of JSON bodies.
        inspect: open https from the app.
        tunnel: pass https from the app on as it is.
        app_http2: the app speaks HTTP/2.
        upstream_http2: … and the upstream would, too.
        stream: pass large bodies on as they come, where that must be asked for.
        reverse: where the one server is that it stands for, as a reverse proxy; 0 to be a forward proxy.
        https_port: where the upstream is, if not where the lab's own is.
        more: further keys of Overcoat's policy.
    """

    pins: bool = False
    fields: bool = False
    inspect: bool = False
    tunnel: bool = False
    app_http2: bool = False
    upstream_http2: bool = False
    stream: bool = False
    reverse: int = 0
    https_port: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)


def overcoat_policy(lab: Lab, job: Job, port: int) -> dict[str, Any]:
    """Return the policy for a job, as JSON, which is YAML as well."""
    rule: dict[str, Any] = {"name": "bench", "hosts": [HOST, NAME], "https_port": job.https_port or lab.upstream.port}
    if job.pins:
        rule["pins"] = {"any_of": [lab.pin]}
    elif not job.fields:
        rule["https"] = "inspect" if job.inspect else "tunnel"
    policy: dict[str, Any] = {
        "version": 1,
        "listen": [
            f"reverse://{HOST}:{port}?to=https://{NAME}:{job.reverse}" if job.reverse else f"forward://{HOST}:{port}"
        ],
        "admin": None,
        "trust": {"roots": str(lab.ca_file)},
        "destinations": {"allow": ["loopback"]},
        "rules": [rule],
    }
    if job.fields:
        policy["keys"] = {
            "bench": {"alg": "ECDH-ES+A256KW", "primary": {"kid": "bench", "file": str(lab.field_key_file)}}
        }
        rule["request"] = [{"encrypt": list(FIELDS), "key": "bench"}]
    return policy | dict(job.more)


def overcoat(
    lab: Lab, job: Job, name: str = OVERCOAT, core: str | None = None, checkout: Path | None = None
) -> Contender:
    """Start Overcoat: the lab's, or that of another checkout, with the environment there if there is one.

    Raises:
        Unavailable: it does not know a key of the policy that the job needs.
    """
    port = free_port()
    path = lab.write(f"overcoat-{port}.yaml", json.dumps(overcoat_policy(lab, job, port)))
    command: list[str | Path] = [lab.overcoat]
    data = lab.directory / f"overcoat-{port}-data"  # its own: no two share a local CA unasked
    environment = {"OVERCOAT_DATA": str(data)}
    if checkout is not None:
        python = checkout / ".venv" / "bin" / "python"
        command = [python if python.exists() else sys.executable, "-m", "overcoat"]
        environment["PYTHONPATH"] = str(checkout)
    process = lab.start(f"overcoat-{port}", [*command, "serve", "-p", path], core=core, env=environment)
    try:
        process.wait_for_port(port)
    except LabError as e:
        unknown = next((line for line in str(e).splitlines() if "unknown key" in line), None)
        if unknown is not None:
            raise Unavailable(f"the policy of this Overcoat has no such key: {', '.join(job.more)}") from None
        raise
    return Contender(name, process, port, ca_file=data / "ca-cert.pem")


def mitmdump_command(lab: Lab, job: Job, port: int) -> tuple[list[str | Path], dict[str, str]]:
    """Return the command and the environment that run stock mitmdump for a job."""
    options = [
        "connection_strategy=lazy",
        "upstream_cert=false",
        f"ssl_verify_upstream_trusted_ca={lab.ca_file}",
        f"confdir={lab.directory / 'mitmproxy'}",
    ]
    if job.stream:
        options.append("stream_large_bodies=1m")
    if job.reverse:
        options.append(f"mode=reverse:https://{NAME}:{job.reverse}")
    if job.tunnel:
        options.append(f"ignore_hosts={HOST}|{NAME}")
    script = "mitm_protect.py" if job.pins or job.fields else "mitm_upgrade.py"
    command: list[str | Path] = [lab.tools / "mitmdump", "-q", "-s", HERE / script]
    command += ["--listen-host", HOST, "--listen-port", str(port)]
    for option in options:
        command += ["--set", option]
    environment = {
        "BENCH_HTTPS_PORT": str(job.https_port or lab.upstream.port),
        "BENCH_PIN": lab.pin,
        "BENCH_KEY": str(lab.field_key_file),
    }
    return command, environment


def mitmdump(lab: Lab, job: Job, name: str = "mitmdump") -> Contender:
    """Start stock mitmdump, with a script that does the job."""
    port = free_port()
    command, environment = mitmdump_command(lab, job, port)
    process = lab.start(f"mitmdump-{port}", command, env=environment)
    process.wait_for_port(port)
    leaves_out = "no decision lines; a script's exception lets the request pass"
    return Contender(
        name, process, port, ca_file=lab.directory / "mitmproxy" / "mitmproxy-ca-cert.pem", leaves_out=leaves_out
    )


def proxy_py(lab: Lab, job: Job) -> Contender:
    """Start proxy.py: with a plug-in for the upgrade, else as it comes."""
    port = free_port()
    command: list[str | Path] = [
        lab.tools / "proxy",
        "--hostname",
        HOST,
        "--port",
        str(port),
        "--log-level",
        "CRITICAL",
    ]
    command += ["--num-workers", "1", "--num-acceptors", "1", "--timeout", "600", "--ca-file", lab.ca_file]
    command += ["--data-dir", lab.directory / "proxypy"]
    ca_file = None
    if not (job.inspect or job.tunnel):
        command += ["--plugins", "proxypy_upgrade.Upgrade"]
        leaves_out = "the plug-in takes whole requests only (no body in pieces); no pins, no upstream pool"
    elif job.inspect:
        ca_file, key = lab.authority("proxypy-ca")
        command += ["--ca-key-file", key, "--ca-cert-file", ca_file, "--ca-signing-key-file", key]
        command += ["--ca-cert-dir", lab.directory / "proxypy-certificates"]
        leaves_out = "requests are passed on unread unless a plug-in asks for them; no pins"
    else:
        leaves_out = "no policy of hosts"
    environment = {"BENCH_HTTPS_PORT": str(lab.upstream.port), "PYTHONPATH": str(HERE)}
    process = lab.start(f"proxypy-{port}", command, env=environment)
    process.wait_for_port(port)
    return Contender("proxy.py", process, port, True, ca_file, leaves_out)


def squid(lab: Lab, job: Job) -> Contender:
    """Start Squid: a TLS origin peer for the upgrade, ssl_bump to inspect, CONNECT for tunnels."""
    port = free_port()
    folder = lab.directory / f"squid-{port}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)  # Squid changes from root to its own user
    lab.directory.chmod(0o755)
    ca_file = None
    listen = f"http_port {HOST}:{port}"
    lines = [
        "http_access allow all",
        "cache deny all",
        "cache_mem 0 MB",
        "access_log none",
        "cache_log stdio:/dev/stderr",
        "cache_store_log none",
        f"pid_filename {folder}/squid.pid",
        f"coredump_dir {folder}",
        "pinger_enable off",
        "workers 1",
        "shutdown_lifetime 0 seconds",
        "via off",
        "forwarded_for delete",
        "visible_hostname bench",
        f"tls_outgoing_options cafile={lab.ca_file}",
    ]
    if job.inspect:
        ca_file, key = lab.authority("squid-ca")
        key.chmod(0o644)
        listen += f" ssl-bump tls-cert={ca_file} tls-key={key} generate-host-certificates=on"
        database = folder / "certificates"
        helper = "/usr/lib/squid/security_file_certgen"
        lab.run([helper, "-c", "-s", database, "-M", "4MB"])
        for path in (database, *database.rglob("*")):
            path.chmod(0o777)
        lines += [f"sslcrtd_program {helper} -s {database} -M 4MB", "sslcrtd_children 1", "ssl_bump bump all"]
        leaves_out = "no pins"
    elif job.tunnel:
        leaves_out = "no look at what is in the tunnel"
    else:
        lines += [
            f"cache_peer {HOST} parent {lab.upstream.port} 0 no-query no-digest originserver name=upstream tls "
            f"tls-cafile={lab.ca_file} ssldomain={NAME}",  # it matches names only, not addresses
            "cache_peer_access upstream allow all",
            "never_direct allow all",
        ]
        leaves_out = f"{_FIXED}; no pins"
    config = lab.write(f"squid-{port}.conf", "\n".join([listen, *lines]) + "\n")
    process = lab.start(f"squid-{port}", [lab.programs["squid"], "-N", "-f", config])
    process.wait_for_port(port)
    return Contender("Squid", process, port, True, ca_file, leaves_out)


_NGINX = """\
daemon off;
master_process off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  keepalive_timeout 900s;
  upstream server_with_tls {{
    server {host}:{upstream_port};
    keepalive 64;
    keepalive_requests 1000000000;
    keepalive_timeout 900s;
  }}
  server {{
    listen {host}:{port} backlog=4096;
    location / {{
      proxy_pass https://server_with_tls;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host {host};
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {ca_file};
      proxy_ssl_name {name};
      proxy_ssl_protocols TLSv1.2 TLSv1.3;
      proxy_max_temp_file_size 0;
    }}
  }}
}}
"""


def nginx(lab: Lab) -> Contender:
    """Start nginx, which upgrades to one upstream."""
    port = free_port()
    folder = lab.directory / f"nginx-{port}"
    folder.mkdir()
    config = lab.write(
        f"nginx-{port}.conf",
        _NGINX.format(
            folder=folder, host=HOST, name=NAME, port=port, upstream_port=lab.upstream.port, ca_file=lab.ca_file
        ),
    )
    process = lab.start(f"nginx-{port}", nginx_command(lab, config))
    process.wait_for_port(port)
    return Contender("nginx", process, port, leaves_out=f"{_FIXED}; no pins, no CONNECT")


_HAPROXY = """\
global
  nbthread 1
  maxconn 4096
  ssl-server-verify required
defaults
  mode http
  timeout connect 10s
  timeout client 900s
  timeout server 900s
  timeout http-keep-alive 900s
frontend apps
  bind {host}:{port}
  default_backend upstream
backend upstream
  http-reuse always
  server upstream {host}:{upstream_port} ssl verify required ca-file {ca_file} verifyhost {name} ssl-min-ver TLSv1.2
"""


def haproxy(lab: Lab) -> Contender:
    """Start HAProxy, which upgrades to one upstream."""
    port = free_port()
    config = lab.write(
        f"haproxy-{port}.cfg",
        _HAPROXY.format(host=HOST, name=NAME, port=port, upstream_port=lab.upstream.port, ca_file=lab.ca_file),
    )
    process = lab.start(f"haproxy-{port}", [lab.programs["haproxy"], "-db", "-f", config])
    process.wait_for_port(port)
    return Contender("HAProxy", process, port, leaves_out=f"{_FIXED}; no pins, no CONNECT")


def direct(lab: Lab) -> Contender:
    """Return the way without a proxy: the client speaks https itself."""
    return Contender("no proxy", None, lab.upstream.port, False, lab.ca_file, "all of it")
