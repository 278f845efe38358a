"""Fetching what a stranger's URL names, from a server of our own on this machine."""

from __future__ import annotations

import http.server
import ipaddress
import socket
import threading
import time

import pytest

from processors import fetching
from processors.fetching import FetchError, fetch, public_addresses

CONTENT = b"an image" * 1000


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name, _, argument = self.path[1:].partition("?")
        if name == "redirect":
            self.send_response(302)
            self.send_header("Location", argument)
            self.end_headers()
        elif name == "headers":
            self.send_response(200)
            self.flush_headers()
            try:
                for letter in "Slow: " + 200 * "x":
                    self.wfile.write(letter.encode())
                    time.sleep(0.05)
            except OSError:
                return
        elif name == "missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            try:
                while name == "endless":
                    self.wfile.write(b"x" * 100_000)
                while name == "slow":
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return
            self.wfile.write(CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def port():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def public(monkeypatch, port):
    """`http://public.test` stands for a server of the internet; every other name is looked up and checked as ever."""
    check = fetching.public_addresses
    monkeypatch.setattr(
        fetching, "public_addresses", lambda host, at: ["127.0.0.1"] if host == "public.test" else check(host, at)
    )
    return f"http://public.test:{port}"


def test_a_public_url_is_fetched_and_a_redirect_followed(public):
    assert fetch(f"{public}/photo.jpg") == CONTENT
    assert fetch(f"{public}/redirect?{public}/photo.jpg") == CONTENT


PRIVATE = [
    "127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "2130706433", "0x7f.1",
    "[::1]", "[::]", "[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
    "224.0.0.1", "192.0.0.8", "192.0.0.192", "192.0.0.9", "192.0.0.10", "168.63.129.16", "255.255.255.255", "198.18.0.1",
    "240.0.0.1", "[64:ff9b:1::1]", "[64:ff9b:1::808:808]", "[fec0::1]", "[::7f00:1]", "[::808:808]", "[::ffff:0:7f00:1]",
    "[::ffff:a83f:8110]", "[64:ff9b::a83f:8110]", "[64:ff9b::c000:8]", "[2002:a83f:8110::1]", "[2002:a9fe:a9fe::1]",
    "[2001:0:7f00:1::]", "[2001:0:808:808:0:0:8080:8080]", "[2001:db8::1]", "[3fff::1]",
    "[5f00::1]", "[ff02::1]", "[100::1]", "[2002:808:808::1]",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
@pytest.mark.parametrize("python", ["as it is", "that calls everything global"])
def test_private_addresses_are_refused_before_anything_is_sent(host, python, port, monkeypatch):
    """The list does not lean on `is_global`, but for the oldest private networks, which every version of Python knows."""
    old = ("127.", "localhost", "10.", "192.168.", "169.254.", "2130706433", "0x7f.1", "[::ffff:7", "[::ffff:127", "[::ffff:a9fe",
           "[64:ff9b::7f", "[2002:7f", "[2002:a9fe")  # fmt: skip
    if python != "as it is" and not host.startswith(old):
        for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
            monkeypatch.setattr(kind, "is_global", True)

    def connect(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(FetchError, match="not a public address"):
        fetch(f"http://{host}:{port}/photo.jpg")


@pytest.mark.parametrize("host", ["93.184.215.14", "2606:4700::1", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses_pass(host):
    assert public_addresses(host, 80) == [host]


def test_a_redirect_to_a_private_address_is_refused(public, port):
    with pytest.raises(FetchError, match=r"127\.0\.0\.1, which is not a public address"):
        fetch(f"{public}/redirect?http://127.0.0.1:{port}/photo.jpg")


def test_a_name_with_one_private_address_among_public_ones_is_refused(monkeypatch):
    found = [(socket.AF_INET, 1, 6, "", ("93.184.215.14", 80)), (socket.AF_INET, 1, 6, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:1])
    assert public_addresses("example.org", 80) == ["93.184.215.14"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(FetchError, match=r"10\.0\.0\.1"):
        public_addresses("example.org", 80)


def test_the_checked_address_is_the_one_connected_to(monkeypatch):
    """A name that answers with another address the second time is not asked a second time."""
    answers = iter(["93.184.215.14", "127.0.0.1"])
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", (next(answers), 80))]
    )  # fmt: skip
    connected = []

    def connect(address, *_):
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(FetchError):
        fetch("http://rebound.test/photo.jpg")
    assert connected == [("93.184.215.14", 80)]


def test_limits_of_size_and_time(public):
    with pytest.raises(FetchError, match="more than 1,000,000 bytes"):
        fetch(f"{public}/endless", max_bytes=1_000_000)
    begun = time.monotonic()
    for name in ("slow", "headers"):
        with pytest.raises(FetchError, match="longer than 0.5 seconds"):
            fetch(f"{public}/{name}", timeout=0.5)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "url",
    ["file:///etc/hostname", "ftp://public.test/x", "http://", "http://[", "http://a b/", "http://nowhere.invalid/x"],
)
def test_other_urls_are_refused(url):
    with pytest.raises(FetchError):
        fetch(url)


def test_error_says_what_is_wrong_with_the_answer(public):
    with pytest.raises(FetchError, match="404"):
        fetch(f"{public}/missing")
    with pytest.raises(FetchError, match="could not be fetched"):
        fetch(f"{public}/redirect?file:///etc/hostname")
    with pytest.raises(FetchError, match="could not be fetched"):
        fetch(f"{public}/redirect?{public}/redirect")
