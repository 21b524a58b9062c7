# SPDX-License-Identifier: LGPL-2.1-or-later
"""The public API, pinned: a change of a name or signature must change this file on purpose (and API_VERSION, if it
breaks clients)."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccorchd.bus.instance import InstanceInterface
from ccorchd.bus.manager import ManagerInterface
from ccorchd.bus.project import ProjectInterface

PINNED = Path(__file__).parent / "signatures.txt"


def described(interface: type) -> list[str]:
    """Return a line for each member of *interface*, without making one: the signatures hang on the class."""
    lines = []
    for name in dir(interface):
        member = vars(interface).get(name)
        held = getattr(member, "__dict__", {})
        if (method := held.get("__DBUS_METHOD")) is not None:
            kind = "changes" if held["ccorch_mutating"] else "reads"
            lines.append(f"method {name}({method.in_signature}) -> {method.out_signature or 'nothing'} {kind}")
        elif (signal := held.get("__DBUS_SIGNAL")) is not None:
            lines.append(f"signal {name}({signal.signature})")
        elif hasattr(member, "signature") and hasattr(member, "access"):
            lines.append(f"property {name}: {member.signature}")
    return sorted(lines)


@pytest.mark.parametrize("interface", [ManagerInterface, ProjectInterface, InstanceInterface])
def test_signatures_are_as_published(interface: type) -> None:
    text = PINNED.read_text(encoding="utf-8")
    _, _, section = text.partition(f"[{interface.__name__}]\n")
    wanted = [line for line in section.partition("\n[")[0].splitlines() if line]
    assert described(interface) == wanted
