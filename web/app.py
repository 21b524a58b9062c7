# SPDX-License-Identifier: LGPL-2.1-or-later
"""The aiohttp application and the socket it listens on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

SHUTDOWN_TIMEOUT = 5.0
"""Seconds that open requests get at shutdown."""


async def healthz(_request: web.Request) -> web.Response:
    """Say that the process answers; whether the daemon does is another question."""
    return web.json_response({"status": "ok"}, headers={"Cache-Control": "no-store"})


def application() -> web.Application:
    """Return the application with all its routes."""
    served = web.Application()
    served.router.add_get("/healthz", healthz)
    return served


@contextlib.asynccontextmanager
async def listening(host: str, port: int) -> AsyncIterator[str]:
    """Serve on *host*:*port* (0: any free port) while the context lasts; the value is the real ``host:port``."""
    runner = web.AppRunner(application(), access_log=None)
    await runner.setup()
    try:
        # The time-out goes to the site: aiohttp 3.8.4 breaks when AppRunner gets it.
        site = web.TCPSite(runner, host, port, shutdown_timeout=SHUTDOWN_TIMEOUT)
        await site.start()
        bound_host, bound_port = runner.addresses[0][:2]
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        yield f"{shown}:{bound_port}"
    finally:
        await runner.cleanup()
