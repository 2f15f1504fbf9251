"""What goes over a wire arrives whole, or not at all; a policy arrives with its keys."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from proxy.core.jose.keymaterial import Alg, Material, SecretBytes
from proxy.core.jose.keys import Key, KeySet
from proxy.core.rules.policy import Policy
from proxy.processes.wires import new_wire, pack, receive, send, unpack


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = new_wire()
    yield ends
    for end in ends:
        end.close()


def test_messages_keep_their_bounds(wire: tuple[socket.socket, socket.socket]) -> None:
    big = bytes(range(256)) * 8192  # more than a socket holds

    def send_all() -> None:
        for each in (b"a", b"", big, b"b"):
            send(wire[0], each)

    sender = threading.Thread(target=send_all)
    sender.start()
    assert [receive(wire[1]) for _ in range(4)] == [b"a", b"", big, b"b"]
    sender.join()


@pytest.mark.parametrize("part", [b"", b"\0\0", b"\0\0\0\0\0\0\0\x05abc"])
def test_what_ends_too_early_is_an_end(wire: tuple[socket.socket, socket.socket], part: bytes) -> None:
    wire[0].sendall(part)
    wire[0].close()
    assert receive(wire[1]) is None


def test_a_process_that_is_gone_is_an_error_to_the_sender(wire: tuple[socket.socket, socket.socket]) -> None:
    wire[1].close()
    with pytest.raises(OSError, match="pipe"):
        send(wire[0], b"x")


def test_one_that_does_not_read_is_a_timeout(wire: tuple[socket.socket, socket.socket]) -> None:
    wire[0].settimeout(0.05)
    with pytest.raises(TimeoutError):
        send(wire[0], bytes(8 * 1024 * 1024))


def material(alg: Alg) -> list[Material]:
    match alg:
        case Alg.A256KW:
            return [SecretBytes(bytes(range(32)))]
        case Alg.RSA_OAEP_256:
            key = rsa.generate_private_key(65537, 2048)
            return [key, key.public_key()]
        case Alg.ECDH_ES_A256KW:
            curve, montgomery = ec.generate_private_key(ec.SECP256R1()), X25519PrivateKey.generate()
            return [curve, curve.public_key(), montgomery, montgomery.public_key()]


@pytest.mark.parametrize("alg", Alg)
def test_every_kind_of_key_arrives(alg: Alg) -> None:
    for number, each in enumerate(material(alg)):
        sent = Policy(keys={"k": KeySet("k", alg, Key(f"k{number}", alg, each))})
        found = unpack(pack(sent), Policy).keys["k"].keys[0]
        assert (found.kid, found.alg, found.can_open) == (f"k{number}", alg, Key("x", alg, each).can_open)
        if isinstance(each, SecretBytes):
            assert isinstance(found.material, SecretBytes)
            assert found.material.reveal() == each.reveal()
        else:
            assert type(found.material) is type(each)


def test_it_is_another_policy_that_arrives() -> None:
    policy = Policy()
    assert unpack(pack(policy), Policy) != policy  # connections are kept apart by identity
