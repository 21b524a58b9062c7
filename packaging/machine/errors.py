# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes wrong with machines, as one sentence a person can act on."""

from __future__ import annotations


class MachineError(Exception):
    """A machine cannot be made, reached or stopped; the text is one sentence, with a hint where there is one."""


class NotPossibleHere(MachineError):
    """This kind of machine cannot exist on this host (no privilege, no kernel support, a missing program)."""
