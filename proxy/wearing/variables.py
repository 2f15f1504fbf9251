"""The variables that make a program send its requests to the sidecar and trust the local CA, as one table. `overcoat
run` and `overcoat env` ask it; nothing here reads or writes anything.

Rules of this module:

- Each variable says why it is there: who reads it, and how.
- A variable that *adds* certificates to a program's own roots names `ca.pem`. One that *replaces* them names
  `ca-bundle.pem`, which has the system's roots, too: hosts that are only tunnelled still show their own certificates.
- What the user has set in a list of options stays, and ours is added once, however often it is asked for.
- Nothing but `NO_PROXY` lets a request go past the sidecar: this machine itself, and what the user has named.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

CA, BUNDLE = "ca.pem", "ca-bundle.pem"
JAVA_STORE, JAVA_PASSWORD = "truststore.p12", "changeit"  # what Java's own has; it protects nothing
WGETRC, APT, NODE, PHP = "wgetrc", "apt.conf", "node.cjs", "php"
PHP_FIRST = f"{PHP}/first.php"
OWN = ("localhost", "127.0.0.1", "::1")  # through the sidecar these would be the sidecar's own machine

# Programs differ in the spelling that they read. curl reads only `http_proxy`, since a CGI script's HTTP_PROXY comes
# from the request's header field Proxy; Ruby, Go and others read either.
PROXIES = (
    *("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
    "CGI_HTTP_PROXY",  # Perl's LWP, Go and others, where REQUEST_METHOD is set: HTTP_PROXY is not believed there
    "GLOBAL_AGENT_HTTP_PROXY",  # Node.js: global-agent
    *("npm_config_proxy", "npm_config_https_proxy"),  # npm: they come before what .npmrc says
    "grpc_proxy",  # gRPC's C core: it comes before https_proxy and http_proxy
)
EXCEPTIONS = ("no_proxy", "NO_PROXY", "no_grpc_proxy", "GLOBAL_AGENT_NO_PROXY", "npm_config_noproxy")

# Read beside a program's own roots.
ADDING = (
    "NODE_EXTRA_CA_CERTS",  # Node.js, and Deno from 2.8 on
    "DENO_CERT",  # Deno
)
# Read in place of a program's own roots.
REPLACING = (
    "SSL_CERT_FILE",  # OpenSSL's defaults: Python, Ruby, PHP streams, .NET; Go; rustls-native-certs (uv); HTTP::Tiny
    "CURL_CA_BUNDLE",  # curl, requests
    "REQUESTS_CA_BUNDLE",  # Python: requests, and pip
    "PIP_CERT",  # pip, which from 24.2 on asks the system's store otherwise
    "GIT_SSL_CAINFO",  # git, which does not read SSL_CERT_FILE
    "CARGO_HTTP_CAINFO",  # cargo
    "AWS_CA_BUNDLE",  # the AWS command line, boto3
    "PERL_LWP_SSL_CA_FILE",  # Perl's LWP, which does not read SSL_CERT_FILE
    "npm_config_cafile",  # npm
    "COMPOSER_CAFILE",  # PHP's composer
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",  # gRPC's C core, Node.js
    "HTTPLIB2_CA_CERTS",  # Python: httplib2
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",  # gcloud
    "NIX_SSL_CERT_FILE",  # OpenSSL as Nix builds it
)
SWITCHES = {
    "NODE_USE_ENV_PROXY": "1",  # Node.js from 22.21 and 24.5 on: fetch, http and https read the proxy variables
    "PERL_LWP_ENV_PROXY": "1",  # Perl's LWP reads them only where it is told to
}


@dataclass(frozen=True, slots=True)
class Coat:
    """What a program is to wear.

    Attributes:
        proxy: the sidecar's URL, `http://HOST:PORT`.
        folder: where the files lie that `proxy.wearing.files` writes, as the program sees it.
        own: for each variable that names a file, the one to name where it is not the usual one.
        neighbours: further hosts that are reached without the sidecar.
    """

    proxy: str
    folder: str
    own: Mapping[str, str]
    neighbours: tuple[str, ...] = ()

    def path(self, name: str) -> str:
        """Return the path of one of the files."""
        return f"{self.folder}/{name}"

    def variables(self, before: Mapping[str, str]) -> dict[str, str]:
        """Return the variables to set.

        Args:
            before: the variables that are set already.

        Raises:
            ValueError: a path cannot be written into Java's options.
        """
        exceptions = self._exceptions(before)
        return {
            **dict.fromkeys(PROXIES, self.proxy),
            **dict.fromkeys(EXCEPTIONS, exceptions),
            **{name: self.own.get(name, self.path(CA)) for name in ADDING},
            **{name: self.own.get(name, self.path(BUNDLE)) for name in REPLACING},
            **SWITCHES,
            "WGETRC": self.own.get("WGETRC", self.path(WGETRC)),  # GnuTLS' wget reads no variable with certificates
            "APT_CONFIG": self.own.get("APT_CONFIG", self.path(APT)),
            "NODE_OPTIONS": _with(before.get("NODE_OPTIONS", ""), self.node_options()),
            "PHP_INI_SCAN_DIR": self._php(before.get("PHP_INI_SCAN_DIR", "")),
            "JAVA_TOOL_OPTIONS": self._java(before),
        }

    def _exceptions(self, before: Mapping[str, str]) -> str:
        """Return the value of NO_PROXY: what the user has named, this machine, the neighbours."""
        named = [name.strip() for each in ("no_proxy", "NO_PROXY") for name in before.get(each, "").split(",")]
        return ",".join(dict.fromkeys(name for name in (*named, *OWN, *self.neighbours) if name))

    def node_options(self) -> str:
        """Return the options with which Node.js loads what makes older versions ask the sidecar."""
        path = self.path(NODE)
        if any(each in path for each in ' "\\'):
            path = '"{}"'.format(path.replace("\\", "\\\\").replace('"', '\\"'))
        return f"--require {path}"

    def _php(self, before: str) -> str:
        """Return the folders of ini files: an empty one stands for those that PHP reads by default."""
        ours = self.path(PHP)
        folders = before.split(":")
        return before if ours in folders else ":".join([*folders, ours])

    def java_trust(self) -> str:
        """Return Java's options that make it trust the local CA, without keytool having been asked."""
        store = _java_quoted(f"-Djavax.net.ssl.trustStore={self.path(JAVA_STORE)}")
        return f"{store} -Djavax.net.ssl.trustStorePassword={JAVA_PASSWORD}"

    def java_proxy(self, before: Mapping[str, str]) -> str:
        """Return Java's options that make it ask the sidecar."""
        url = urlsplit(self.proxy)
        hosts = "|".join(_java_host(name) for name in self._exceptions(before).split(","))
        where = f"-Dhttp.proxyHost={url.hostname} -Dhttp.proxyPort={url.port}"
        return f"{where} {where.replace('-Dhttp.', '-Dhttps.')} {_java_quoted(f'-Dhttp.nonProxyHosts={hosts}')}"

    def java_options(self, before: Mapping[str, str]) -> str:
        """Return all of Java's options, as one line."""
        return f"{self.java_trust()} {self.java_proxy(before)}"

    def _java(self, before: Mapping[str, str]) -> str:
        """Return JAVA_TOOL_OPTIONS. The last of two options counts: a trust store of the user's, but our proxy."""
        given = before.get("JAVA_TOOL_OPTIONS", "")
        trust, way = self.java_trust(), self.java_proxy(before)
        given = given.replace(trust, "").replace(way, "")
        return " ".join(part for part in (trust, given.strip(), way) if part)


def _with(before: str, ours: str) -> str:
    """Return the user's options with ours behind them, unless they are there already."""
    return before if ours in before else f"{before} {ours}".strip()


def _java_host(name: str) -> str:
    """Return one host of NO_PROXY as `http.nonProxyHosts` writes it: `*.` for all names below one."""
    if ":" in name and not name.startswith("["):
        return f"[{name}]"
    return f"*{name}" if name.startswith(".") else name


def _java_quoted(option: str) -> str:
    """Return an option as the JVM reads it from JAVA_TOOL_OPTIONS, where quotes are taken off and nothing escapes them.

    Raises:
        ValueError: it has both kinds of quotes.
    """
    quotes = [each for each in "\"'" if each in option]
    if not quotes and not any(each.isspace() for each in option):
        return option
    if len(quotes) == 2:
        raise ValueError("Java's options cannot name a path that has both kinds of quotes in it")
    quote = '"' if quotes != ['"'] else "'"
    return f"{quote}{option}{quote}"


def wgetrc(folder: str) -> bytes:
    """Return the settings with which wget trusts the bundle in a folder, whichever TLS library it was built with."""
    return f"ca_certificate = {folder}/{BUNDLE}\n".encode()


def shell_text(variables: Mapping[str, str]) -> str:
    """Return lines for a POSIX shell that set and export the variables: `eval "$(overcoat env --shell)"`."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
