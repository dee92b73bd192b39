"""The server of live pages: one page and its questions, on this machine alone unless asked otherwise.

What it refuses, before anything is looked at: a request for another host than its own (so that no name that a page of
the internet points at this machine reaches it), one that a page of another origin sends, one without the token where
there is one, and a body beyond a limit. The path of a request is compared with fixed words, and never opened.
"""

import asyncio
import contextlib
import ipaddress
import json
import secrets
import socket
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from flowknife.errors import FlowknifeError, InputError
from flowknife.explore._live import Live, answer
from flowknife.explore._page import assembled, policy_of

if TYPE_CHECKING:
    from starlette.applications import Starlette

PORT = 8765  # the first choice, so that a forwarded port stays the same

_LARGEST = 16 * 2**20  # bytes of a request
_SECONDS = 30  # for its body to come
_WAITING = 32  # connections at a time

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def application(live: Live, hosts: frozenset[str] | None, token: str | None) -> "Starlette":
    """The page at `/`, and its questions at `/api/NAME`.

    Args:
        live: the page, and what it may ask.
        hosts: the names, with the port, by which it may be asked; None for any, which takes a token.
        token: a secret that every request must have, `/?token=...` and the header X-Token; None for none.
    """
    import anyio
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    page = assembled(live.title, live.content, live=True)
    policy = f"{policy_of(live=True)}; frame-ancestors 'none'"
    # one call at a time, which uses all processors; slow ones wait for each other in a line of their own
    fast, slow, checks = (anyio.CapacityLimiter(1) for _ in range(3))
    lanes = {**dict.fromkeys(live.slow, slow), "trust": checks}

    def reply(content: Any, status: int = 200, kind: str = "application/json") -> Response:
        headers = {**_HEADERS, "Content-Security-Policy": policy}
        return Response(content, status_code=status, media_type=kind, headers=headers)

    def refused(words: str, status: int) -> Response:
        return reply(json.dumps({"error": words}), status)

    def stranger(request, own_token) -> Response | None:
        host = request.headers.get("host", "")
        if hosts is not None and host not in hosts:
            return refused("this is another host", 421)
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return refused("this page is of another origin", 403)
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return refused("this page is of another origin", 403)
        if token is not None and not secrets.compare_digest(own_token.encode(), token.encode()):
            return refused("the token is missing or wrong: open the address that flowknife explore printed", 403)
        return None

    async def show(request):
        return stranger(request, request.query_params.get("token", "")) or reply(page, kind="text/html")

    async def ask(request):
        no = stranger(request, request.headers.get("x-token", ""))
        if no is not None:
            return no
        if request.headers.get("origin") is None or request.headers.get("content-type") != "application/json":
            return refused("only the page itself may ask", 403)
        name = request.path_params["name"]
        if name not in live.calls:
            return refused("there is no such question", 404)
        try:
            body = await _body(request)
        except TimeoutError:
            return refused("the question took too long to come", 408)
        if body is None:
            return refused(f"the question is larger than {_LARGEST // 2**20} MiB", 413)
        work = partial(answer, live.calls[name], body)
        try:
            return reply(await anyio.to_thread.run_sync(work, limiter=lanes.get(name, fast)))
        except FlowknifeError as error:
            return refused(str(error), 400)
        except asyncio.CancelledError:  # the server ends while this is computed
            return refused("the server has ended", 503)
        except Exception:
            traceback.print_exc()
            return refused("the server failed at this; its terminal says why", 500)

    return Starlette(routes=[Route("/", show), Route("/api/{name}", ask, methods=["POST"])])


async def _body(request) -> bytes | None:
    """The body of a request; None if it is too large."""
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", 0)) > _LARGEST:
            return None
    parts, size = [], 0
    async with asyncio.timeout(_SECONDS):
        async for part in request.stream():
            size += len(part)
            if size > _LARGEST:
                return None
            parts.append(part)
    return b"".join(parts)


def require_server() -> None:
    """Refuse to go on without the packages that a live page takes."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise InputError('starlette or uvicorn is not installed; try pip install "flowknife[explore]"') from None


def serve(
    live: Live,
    host: str = "127.0.0.1",
    port: int | None = None,
    opened: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve a live page until Ctrl-C.

    Args:
        live: the page, and what it may ask.
        host: an address of this machine. Beyond 127.0.0.1 others can reach it, with a token.
        port: 0 for any that is free; default 8765, or any where that one is taken.
        opened: called with the page's address once it can be opened.

    Raises:
        InputError: the packages that this takes are not installed, or nothing can be served at this address.
    """
    require_server()
    import uvicorn

    with _bound(host, port) as listening:
        where, number = listening.getsockname()[:2]
        own = _is_loopback(where)
        token = None if own else secrets.token_urlsafe(24)
        shown = f"[{where}]" if ":" in where else where
        if not own and where in ("0.0.0.0", "::"):
            shown = socket.gethostname()
        names = {f"{name}:{number}" for name in ("127.0.0.1", "localhost", "[::1]", shown)}
        app = application(live, frozenset(names) if own else None, token)
        settings: dict[str, Any] = {"access_log": False, "lifespan": "off", "log_level": "critical", "ws": "none"}
        config = uvicorn.Config(
            app, http="h11", limit_concurrency=_WAITING, server_header=False, timeout_graceful_shutdown=1, **settings
        )
        opened(f"http://{shown}:{number}/{f'?token={token}' if token else ''}")
        with contextlib.suppress(KeyboardInterrupt):  # what ends it, as it should
            uvicorn.Server(config).run(sockets=[listening])


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _bound(host: str, port: int | None) -> socket.socket:
    """A socket that listens."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(f"got --host {host!r}; expected an address of this machine; try 127.0.0.1") from None
    wanted = [PORT, 0] if port is None else [port]
    for number in wanted:
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((place[0], number, *place[2:]))
            listening.listen(64)
            return listening
        except OSError as error:
            listening.close()
            if number == wanted[-1]:
                raise InputError(
                    f"got {host} and port {number}, which cannot be used ({error.strerror}); expected a free port of "
                    "this machine; try --port 0"
                ) from None
    raise AssertionError
