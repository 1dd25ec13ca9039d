"""What our sites and Prefect's server refuse: requests that web pages of others make through a browser."""

import base64
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bardflow.commands.processes import LOOPBACK
from bardflow.home import password

# The pages have a policy of their own, which allows only their own script. It also holds for a file on disk.
SECURE = {
    "Content-Security-Policy": "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def guarded(app: ASGIApp, host: str) -> ASGIApp:
    """Return a site behind `checked`, which asks for the password, if one is set, and sends the headers of `SECURE`."""
    inner = checked(Guard(app, secret=password()), host)

    async def secured(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURE)
            await send(message)

        await inner(scope, receive, sending)

    return secured


def checked(app: ASGIApp, host: str, origins: Iterable[str] = ()) -> ASGIApp:
    """Return a server that refuses requests from pages of other origins, but for those of `origins`.

    On a loopback address, the Host header must be a loopback name. Otherwise another web site could read this one by
    DNS rebinding.
    """
    guard = Guard(app, origins=origins)
    return TrustedHostMiddleware(guard, allowed_hosts=[*LOOPBACK, "[::1]"]) if host in LOOPBACK else guard


class Guard:
    """Asks for `secret`, `NAME:PASSWORD`, if given, and refuses from pages of other origins all that is not a read."""

    def __init__(self, app: ASGIApp, *, secret: str | None = None, origins: Iterable[str] = ()) -> None:
        self.app = app
        self.origins = frozenset(origins)
        self.expected = None if secret is None else b"Basic " + base64.b64encode(secret.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self.app
        reading = scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")
        if self.expected is not None and not secrets.compare_digest(given(headers), self.expected):
            asking = {"WWW-Authenticate": 'Basic realm="bardflow", charset="UTF-8"'}
            answer = PlainTextResponse("a user name and a password are needed\n", 401, asking)
        elif not reading and not self.from_here(headers):
            answer = PlainTextResponse("requests from pages of other sites are refused\n", 403)
        # Starlette's answers to a WebSocket need an extension of the server; without it, it is closed.
        if answer is not self.app and scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await answer(scope, receive, send)

    def from_here(self, headers: Headers) -> bool:
        """Return whether a request comes from a page of this site, or from no page."""
        origin = headers.get("origin")
        if origin in self.origins:
            return True
        own = origin is None or origin.partition("://")[2] == headers.get("host")
        return own and headers.get("sec-fetch-site", "none") in ("same-origin", "none")


def given(headers: Headers) -> bytes:
    """Return the credentials of a request; empty if there are none."""
    return headers.get("authorization", "").encode()
