# SPDX-License-Identifier: LGPL-2.1-or-later
"""Instances: one agent, one scope, one tmux server, one worktree each."""

from ccorchd.instances.service import Instances

__all__ = ["Instances"]
