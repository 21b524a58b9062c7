# SPDX-License-Identifier: LGPL-2.1-or-later
"""``make run``: agents at work on this machine within a minute, and ``make stop``: nothing of it left.

Needs the standard library alone: it is what looks whether the rest is there.
"""
