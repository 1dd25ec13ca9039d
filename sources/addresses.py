"""Which web addresses may be read: http(s), without passwords, and on the internet only unless the user allows more."""

import ipaddress
import os
import re
import socket
from contextlib import suppress
from typing import Any

import httpx

# With this environment variable set to 1, files may be fetched from private addresses.
ALLOW_PRIVATE = "BARDFLOW_ALLOW_PRIVATE_ADDRESSES"
LONGEST_ADDRESS = 8_192
# Parameters of a query that are passwords: of signed addresses (Amazon S3, Google Cloud Storage, Azure's `sig`) and of
# APIs. Compared without regard to case, `-` and `_`.
_SECRETS = re.compile(
    r"(access|auth|bearer|id|private|refresh|session|api|x(amz|goog|ms)?security)*(token|key|passw(or)?d|pwd|secret)"
    r"|auth(orization)?|jwt|sig(nature)?|x(amz|goog)(credential|signature)|(client|app)secret|awsaccesskeyid"
)
# NAT64 (RFC 6052): the last 32 bits are an IPv4 address.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Not on the internet, though some versions of Python say so (IANA's registries of special-purpose addresses; RFC 3879);
# the first is where Azure serves settings to its machines.
_LOCAL = tuple(map(ipaddress.ip_network, ("168.63.129.16", "192.0.0.0/24", "fec0::/10")))

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class PrivateAddress(ValueError):
    """The address is on this machine or in its own network."""

    def __init__(self, host: str, address: str) -> None:
        at = host if host == address else f"{host} is {address}, which"
        super().__init__(
            f"{at} is a private address: on this machine, in its own network, or reserved. If you mean it, set "
            f"{ALLOW_PRIVATE}=1, or make the server your mirror with CORPORA_MIRROR"
        )


def checked_address(url: str) -> str:
    """Return `url` if it may stand in a corpus file.

    Raises ValueError if it is not an http(s) address, or has a password; the message does not repeat the password.
    """
    address = http_address(url)
    if address.userinfo:
        raise ValueError(
            "has a user name or password, which would be stored with the text and shown in reports; put it into "
            f"~/.netrc (machine {address.host} login USER password PASSWORD) and leave it out here"
        )
    for name in address.params:
        if _SECRETS.fullmatch(re.sub(r"[-_.]", "", name.lower())):
            raise ValueError(
                f"has the parameter {name!r}, which is a password and would be stored with the text; leave it out if "
                "the file is public, put a user name and password into ~/.netrc, or download the file and give its path"
            )
    return url


def http_address(url: str) -> httpx.URL:
    """Parse an http(s) address. Raises ValueError if it is none; the message does not repeat it."""
    if len(url) > LONGEST_ADDRESS:
        raise ValueError(f"is longer than {LONGEST_ADDRESS:,} characters")
    try:
        address = httpx.URL(url)
        address.raw_host.decode("ascii").encode("idna")  # what Python's socket does later
    except (httpx.InvalidURL, ValueError):
        # Without the cause, which may repeat a password.
        raise ValueError("is not a web address; write one such as https://example.org/text.txt") from None
    if address.scheme not in ("http", "https") or not address.host or re.search(r"\s", url):
        raise ValueError("should begin with http:// or https:// and a host, and have no blanks")
    if "%" in address.host or (address.port or 0) > 65_535:
        raise ValueError("has no legal host or port")
    return address


def without_password(url: str) -> tuple[str, tuple[str, str] | None]:
    """Divide an address into one without user name and password, and these two, if it has them."""
    address = http_address(url)
    if not address.userinfo:
        return url, None
    return str(address.copy_with(username="", password="")), (address.username, address.password)


def is_private(address: str) -> bool:
    """Whether an IP address is not one of the internet: loopback, link-local, private, multicast, reserved.

    An IPv4 address within an IPv6 one (mapped, 6to4, NAT64) counts as itself.
    """
    ip: _Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inner or ip
    return not ip.is_global or ip.is_multicast or ip.is_reserved or any(ip in network for network in _LOCAL)


def masked(text: str) -> str:
    """A text for messages, in which addresses have neither user names and passwords nor values of queries."""
    return re.sub(r"(?<=://)[^/?#\s]*@|(?<=[?&;])([^=&\s]+)=[^&#\s'\"]*", lambda m: f"{m[1]}=…" if m[1] else "…@", text)


def private_allowed() -> bool:
    """Whether the user allows private addresses."""
    return os.environ.get(ALLOW_PRIVATE) == "1"


def require_public(host: str) -> None:
    """Raise PrivateAddress if a host name means a private address now. A name that cannot be resolved is no error."""
    if private_allowed():
        return
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return
    for *_, place in found:
        if is_private(str(place[0])):
            raise PrivateAddress(host, str(place[0]))


class Connections:
    """Checks each connection of a request, by httpx's `trace` extension: the address that was really connected to.

    A name can mean another address at each look-up, so a check before the connection is not enough. Nothing is sent
    before the check. `own` is a host that may be private. A proxy connects by itself, so there the name is looked up
    and its address is checked here.
    """

    def __init__(self, own: str | None) -> None:
        self._free = private_allowed()
        self._own = own
        self._host = ""  # that of the request
        self._connecting = ""
        self._socket: socket.socket | None = None
        self.was_cut = False

    def check_request(self, request: httpx.Request) -> None:
        """A request hook of httpx, which is also called for each redirect."""
        http_address(str(request.url))
        if request.url.userinfo:
            raise ValueError("the server redirects to an address with a password")
        self._host = request.url.raw_host.decode("ascii")

    def trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith("connect_tcp.started"):
            self._connecting = info["host"]
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        stream = info["return_value"]
        self._socket = stream.get_extra_info("socket")
        if event.endswith("start_tls.complete") or self._free or self._host == self._own:
            return
        try:
            if self._connecting == self._host:
                address = str(stream.get_extra_info("server_addr")[0])
                if is_private(address):
                    raise PrivateAddress(self._host, address)
            else:
                require_public(self._host)
        except PrivateAddress:
            stream.close()
            raise

    def cut(self) -> None:
        """End the connection from another thread; a read that waits ends with an error."""
        self.was_cut = True
        if self._socket is not None:
            with suppress(OSError):  # it has ended by itself
                # The method of the plain socket: that of a TLS socket first drops its state under the reader.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
