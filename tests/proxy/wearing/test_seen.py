"""What the kernel's tables of sockets say of connections past the sidecar."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from proxy.wearing.seen import Place, Socket, Watch, children_of, name_of, sockets_in

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(local: str, remote: str, state: str, inode: int) -> str:
    return f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  0 0 {inode} 1 0 20 4 30 10 -1\n"


little = pytest.mark.skipif(sys.byteorder != "little", reason="the table below is a little-endian machine's")


@little
def test_what_leaves_is_found() -> None:
    text = HEAD + row("0100000A:C000", "0971CB00:01BB", "01", 7) + row("0100000A:C001", "0971CB00:0050", "02", 8)
    assert list(sockets_in(text, "tcp")) == [
        Socket("7", "0.203.113.9", 443, "tcp"),
        Socket("8", "0.203.113.9", 80, "tcp"),
    ]


@little
def test_ipv6_and_what_it_holds_of_ipv4_are_read() -> None:
    one = "B80D0120000000000000000001000000"
    mapped = "0000000000000000FFFF00000971CB00"
    text = HEAD + row(f"{'0' * 32}:C000", f"{one}:01BB", "01", 7) + row(f"{'0' * 32}:C001", f"{mapped}:01BB", "01", 8)
    assert [each.host for each in sockets_in(text, "tcp")] == ["2001:db8::1", "0.203.113.9"]


@little
@pytest.mark.parametrize(
    ("row", "protocol"),
    [
        (row("0100007F:C000", "0100007F:1F90", "01", 7), "tcp"),
        (row("00000000:1F90", "00000000:0000", "0A", 7), "tcp"),
        (row("0100000A:C000", "0971CB00:01BB", "06", 7), "tcp"),
        (row("0100000A:C000", "0971CB00:01BB", "01", 0), "tcp"),
        (row("00000000:1F90", "00000000:0000", "0A", 7) + row("0100000A:1F90", "0971CB00:C000", "01", 8), "tcp"),
        (row("0100000A:C000", "0971CB00:0035", "01", 7), "udp"),
        (row("0100000A:C000", "00000000:0000", "07", 7), "udp"),
    ],
    ids=["loopback", "listening", "time-wait", "nobody's", "came in", "a name lookup", "not connected"],
)
def test_what_does_not_count(row: str, protocol: str) -> None:
    assert list(sockets_in(HEAD + row, protocol)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux' own")
class TestWatch:
    def test_a_connected_socket_of_this_process_is_seen_with_its_program(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect(("192.0.2.1", 9))  # a datagram socket sends nothing by that
            except OSError:
                pytest.skip("this machine has no way out")
            watch = Watch(lambda: [os.getpid()])
            watch.end()
            watch.look()
        assert Place("192.0.2.1:9", "udp", name_of(os.getpid())) in watch.places
        assert not watch.hidden

    def test_one_of_another_process_is_not(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect(("192.0.2.1", 9))
            except OSError:
                pytest.skip("this machine has no way out")
            child = os.posix_spawnp("sleep", ["sleep", "30"], os.environ)
            try:
                assert child in children_of(os.getpid())
                watch = Watch(lambda: [child])
                watch.end()
                watch.look()
                assert watch.places == {}
            finally:
                os.kill(child, 9)
                os.waitpid(child, 0)

    def test_processes_that_have_ended_have_no_children_and_no_name(self) -> None:
        assert (children_of(2**22 + 1), name_of(2**22 + 1)) == ([], "?")
