"""Who may ask: only this machine's browser, with the token, under the right name, from our own pages.

A page of another origin can send requests to the loopback, and a name of its own can be made to lead there. So the
Host header, the Origin header and a secret are all checked, before anything else is done.
"""

from __future__ import annotations

import hmac
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PARAMETER = "open"  # a telling name, or a value that is not hex, would be masked on its way to the terminal
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, a browser sends a form's Origin as null
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._token = token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._cookie = f"plantmix-browse-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, take the token into a cookie, or pass on; every answer carries the same headers."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self._answer(Request(scope))
        await (answer or self._app)(scope, receive, send_with_headers)

    def _answer(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if host not in self._hosts or origin not in (None, f"http://{host}"):
            return _refused("this page answers only under its own address")
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("nothing can be changed here", 405)
        token = request.query_params.get(PARAMETER)
        if token is not None:
            return self._signed_in(request, host) if self._matches(token) else _refused("the token is not right")
        if not self._matches(request.cookies.get(self._cookie, "")):
            return _refused("open the address that `plantmix browse` printed: it holds the token")
        return None

    def _matches(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._token.encode())

    def _signed_in(self, request: Request, host: str) -> Response:
        """To the same page without the token, which is in a cookie from now on."""
        rest = [pair for pair in parse_qsl(request.url.query, keep_blank_values=True) if pair[0] != PARAMETER]
        path = "/" + request.url.path.lstrip("/\\")
        answer = RedirectResponse(f"http://{host}{path}" + ("?" + urlencode(rest) if rest else ""), 303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return answer


def _refused(why: str) -> Response:
    return PlainTextResponse(f"403: {why}\n", 403)
