# SPDX-License-Identifier: LGPL-2.1-or-later
"""Git as ccorch uses it: one door for git processes, and what reads and keeps the state of a worktree.

``process`` is the only module that imports GitPython. :mod:`ccorchd.worktrees` is what the other layers call; it runs
what stands here in threads, one change at a time per repository.
"""
