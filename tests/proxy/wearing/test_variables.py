"""The variables: nothing of the user's is lost, nothing is added twice, and awkward paths come through."""

from __future__ import annotations

import os
import subprocess

import pytest

from proxy.wearing.variables import ADDING, EXCEPTIONS, PROXIES, REPLACING, Coat, shell_text, wgetrc

COAT = Coat("http://127.0.0.1:8080", "/run/coat", {})
AWKWARD = "/tmp/a b'c$d\\e;f\n*"


def test_every_spelling_names_the_sidecar() -> None:
    variables = COAT.variables({})
    assert {variables[name] for name in PROXIES} == {"http://127.0.0.1:8080"}
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        assert {name, name.upper()} <= set(PROXIES)


def test_what_adds_gets_the_certificate_alone_and_what_replaces_the_bundle() -> None:
    variables = COAT.variables({})
    assert {variables[name] for name in ADDING} == {"/run/coat/ca.pem"}
    assert {variables[name] for name in REPLACING} == {"/run/coat/ca-bundle.pem"}


def test_a_file_of_the_users_own_is_named_where_there_is_one() -> None:
    coat = Coat(COAT.proxy, COAT.folder, {"CURL_CA_BUNDLE": "/run/coat/own.pem", "WGETRC": "/run/coat/rc"})
    variables = coat.variables({})
    assert (variables["CURL_CA_BUNDLE"], variables["WGETRC"]) == ("/run/coat/own.pem", "/run/coat/rc")
    assert variables["PIP_CERT"] == "/run/coat/ca-bundle.pem"


def test_exceptions_of_both_spellings_stay_and_ours_are_added() -> None:
    coat = Coat(COAT.proxy, COAT.folder, {}, neighbours=("db",))
    variables = coat.variables({"no_proxy": "a.example, .b.example", "NO_PROXY": "a.example,c"})
    assert {variables[name] for name in EXCEPTIONS} == {"a.example,.b.example,c,localhost,127.0.0.1,::1,db"}
    assert "-Dhttp.nonProxyHosts=a.example|*.b.example|c|localhost|127.0.0.1|[::1]|db" in variables["JAVA_TOOL_OPTIONS"]


def test_options_of_the_users_stay() -> None:
    before = {
        "NODE_OPTIONS": "--max-old-space-size=99",
        "JAVA_TOOL_OPTIONS": "-Xmx1g -Djavax.net.ssl.trustStore=/own -Dhttp.proxyHost=old",
        "PHP_INI_SCAN_DIR": "/etc/own:",
    }
    variables = COAT.variables(before)
    assert variables["NODE_OPTIONS"] == "--max-old-space-size=99 --require /run/coat/node.cjs"
    assert variables["PHP_INI_SCAN_DIR"] == "/etc/own::/run/coat/php"
    java = variables["JAVA_TOOL_OPTIONS"]
    # The last of two counts: the user's trust store, and our proxy.
    assert java.index("trustStore=/run/coat/truststore.p12") < java.index("-Xmx1g") < java.index("trustStore=/own")
    assert java.index("proxyHost=old") < java.index("-Dhttp.proxyHost=127.0.0.1")


def test_php_reads_its_own_folders_where_nobody_named_others() -> None:
    assert COAT.variables({})["PHP_INI_SCAN_DIR"] == ":/run/coat/php"


@pytest.mark.parametrize("before", [{}, {"NODE_OPTIONS": "-x", "JAVA_TOOL_OPTIONS": "-Xmx1g", "NO_PROXY": "a"}])
def test_asked_twice_it_adds_nothing(before: dict[str, str]) -> None:
    once = COAT.variables(before)
    assert COAT.variables(before | once) == once


def test_a_folder_with_blanks_is_quoted_as_node_and_java_read_it() -> None:
    coat = Coat(COAT.proxy, '/run/a "b\\c', {})
    variables = coat.variables({})
    assert variables["NODE_OPTIONS"] == '--require "/run/a \\"b\\\\c/node.cjs"'
    assert "'-Djavax.net.ssl.trustStore=/run/a \"b\\c/truststore.p12'" in variables["JAVA_TOOL_OPTIONS"]


def test_a_folder_that_java_cannot_be_told_of_is_refused() -> None:
    with pytest.raises(ValueError, match="both kinds of quotes"):
        Coat(COAT.proxy, "/run/a'\"b c", {}).variables({})


def test_a_shell_reads_back_what_was_meant() -> None:
    variables = Coat(COAT.proxy, AWKWARD, {}).variables({})
    script = shell_text(variables) + "env -0"
    done = subprocess.run(["sh", "-c", 'eval "$1"; env -0', "sh", script], capture_output=True, check=True)
    found = dict(entry.split("=", 1) for entry in os.fsdecode(done.stdout).split("\0") if "=" in entry)
    assert {name: found[name] for name in variables} == variables


def test_wget_is_told_of_the_bundle() -> None:
    assert wgetrc("/run/coat") == b"ca_certificate = /run/coat/ca-bundle.pem\n"
