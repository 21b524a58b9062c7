# SPDX-License-Identifier: LGPL-2.1-or-later
"""ccorchd: the daemon that owns all state of ccorch and runs agents as transient systemd scopes."""

__version__ = "0.1.0"
