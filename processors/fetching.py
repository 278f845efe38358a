"""Images from URLs that strangers wrote: with a time-out, a size limit, and public addresses only."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 10
MAX_BYTES = 20_000_000
# IPv6 networks whose addresses end in an IPv4 address, by which the packet is delivered in the end: NAT64, IPv4-mapped.
_EMBEDDED_IPV4 = [ipaddress.ip_network(network) for network in ("64:ff9b::/96", "::ffff:0:0/96")]
# Networks that are not the public internet's, whatever `is_global` says, which differs between versions of Python.
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "100.64.0.0/10",  # shared by a provider's customers
        "168.63.129.16/32",  # Azure's own services, seen by every machine there
        "192.0.0.0/24",  # protocol assignments, among them NAT64 discovery and Oracle's and others' metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # name servers' sinks
        "192.52.193.0/24",  # relays
        "192.88.99.0/24",  # relays of 6to4
        "192.175.48.0/24",  # name servers' sinks
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "240.0.0.0/4",  # reserved
        "::/96",  # IPv4-compatible, loopback and unspecified among them; never routed
        "::ffff:0:0:0/96",  # IPv4-translated, used inside a network only
        "64:ff9b:1::/48",  # NAT64 inside a network
        "100::/64",  # discarded
        "2001::/23",  # protocol assignments, among them Teredo, whose packets go to a relay and an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, whose relays are gone; an IPv4 address lies within
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing inside a network
        "fc00::/7",  # private
        "fe80::/10",  # this link
        "fec0::/10",  # this site
    )
]


class FetchError(ValueError):
    """A URL that is not fetched or cannot be, and why."""


def fetch(url: str, timeout: float = TIMEOUT_SECONDS, max_bytes: int = MAX_BYTES) -> bytes:
    """Content of an http(s) URL.

    Every address that the host's name resolves to has to be public, and the connection goes to the address that was
    checked, not to a second look-up's. A redirect is a new connection, so it is checked in the same way. No proxy is
    used, and nothing but http and https. `timeout` is in seconds, for all of it.

    Raises:
        FetchError: naming the URL and what was wrong.
    """
    deadline = _Deadline()
    timer = threading.Timer(timeout, deadline.end)
    timer.start()
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Http(deadline),
        _Https(deadline),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "hamlearning"})
        with opener.open(request, timeout=timeout) as response:
            content = response.read(max_bytes + 1)
        if deadline.over:
            raise TimeoutError
        if len(content) > max_bytes:
            raise FetchError(f"it holds more than {max_bytes:,} bytes")
        return content
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and TimeoutError are OSErrors
        reason = getattr(error, "reason", error) if not isinstance(error, urllib.error.HTTPError) else error
        if deadline.over or isinstance(reason, TimeoutError):
            reason = f"it took longer than {timeout:g} seconds"
        raise FetchError(f"{url:.200} could not be fetched: {reason}") from error
    finally:
        timer.cancel()


class _Deadline:
    """Ends every connection of a fetch: a socket's own time-out begins anew with each byte that arrives."""

    def __init__(self):
        self.over = False
        self.sockets: list[socket.socket] = []

    def watch(self, opened: socket.socket) -> socket.socket:
        self.sockets.append(opened)
        if self.over:
            opened.close()
            raise TimeoutError
        return opened

    def end(self):
        self.over = True
        for opened in self.sockets:
            with contextlib.suppress(OSError):  # closed already
                socket.socket.shutdown(opened, socket.SHUT_RDWR)


def public_addresses(host: str, port: int) -> list[str]:
    """Addresses that a host's name resolves to.

    Raises:
        FetchError: one of them is private, of this machine, or otherwise not the public internet's.
    """
    addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in addresses:
        if not _is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise FetchError(f"{host:.200} is {address}, which is not a public address; give the image itself")
    return addresses


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    for network in _EMBEDDED_IPV4:
        if address in network and not _is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)):
            return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return True  # the address within was checked above
    return address.is_global and not address.is_multicast and not any(address in network for network in _NOT_PUBLIC)


def _connect(connection: http.client.HTTPConnection) -> socket.socket:
    addresses = public_addresses(connection.host, connection.port)
    return socket.create_connection((addresses[0], connection.port), connection.timeout)


class _HttpConnection(http.client.HTTPConnection):
    def __init__(self, *args, deadline: _Deadline, **options):
        super().__init__(*args, **options)
        self.deadline = deadline

    def connect(self):
        self.sock = self.deadline.watch(_connect(self))


class _HttpsConnection(http.client.HTTPSConnection):
    def __init__(self, *args, deadline: _Deadline, **options):
        super().__init__(*args, **options)
        self.deadline = deadline

    def connect(self):
        # The certificate has to be the name's, whatever address it was found at.
        context = ssl.create_default_context()
        wrapped = context.wrap_socket(_connect(self), server_hostname=self.host, do_handshake_on_connect=False)
        self.sock = self.deadline.watch(wrapped)
        self.sock.do_handshake()


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline):
        super().__init__()
        self.deadline = deadline

    def http_open(self, request):
        return self.do_open(_HttpConnection, request, deadline=self.deadline)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline):
        super().__init__()
        self.deadline = deadline

    def https_open(self, request):
        return self.do_open(_HttpsConnection, request, deadline=self.deadline)
