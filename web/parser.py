# SPDX-License-Identifier: LGPL-2.1-or-later
"""The grammar of the command line of ccorch-web."""

from __future__ import annotations

import argparse


def build() -> argparse.ArgumentParser:
    """Return the argument parser; the man page is made from it."""
    parser = argparse.ArgumentParser(
        prog="ccorch-web",
        description="Serve the ccorch dashboard. So far it answers /healthz only.",
        epilog="example: ccorch-web --host 127.0.0.1 --port 8470",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8470, help="TCP port, 0 for a free one (default: %(default)s)")
    return parser
