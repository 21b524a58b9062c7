# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus face: one thin file for each interface, each method a few lines over the orchestrator."""
