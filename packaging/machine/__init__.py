# SPDX-License-Identifier: LGPL-2.1-or-later
"""Throwaway machines with a real systemd: over the host's own files (:mod:`machine.nspawn`) or virtual (:mod:`machine.vm`).

Only the standard library is used, so that this runs before anything is installed.
"""
