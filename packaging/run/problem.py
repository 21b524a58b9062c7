# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trouble that ends a trial run, as one sentence."""

from __future__ import annotations


class Problem(Exception):
    """What is missing or went wrong, in one sentence a person can act on."""
