# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes ``packaging/`` importable: the machinery of machines is no part of what is installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packaging"))
