# SPDX-License-Identifier: LGPL-2.1-or-later
"""Throwaway machines with a real systemd: over the host's own files (nspawn.py) or virtual (vm.py).

Only the standard library is used, so that this runs before anything is installed.
"""
