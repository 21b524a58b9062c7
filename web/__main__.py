# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entry point of ccorch-web."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence

from . import app, parser


async def serve(host: str, port: int) -> None:
    """Listen on *host*:*port* until SIGTERM or SIGINT. Raise OSError when the address cannot be had."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with app.listening(host, port) as address:
        print(f"ccorch-web: listening on http://{address}/", file=sys.stderr, flush=True)
        await ended.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server and return the exit status."""
    options = parser.build().parse_args(arguments)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(options.host, options.port))
    except OSError as error:
        print(f"ccorch-web: cannot listen on {options.host}:{options.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
