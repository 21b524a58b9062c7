# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ccorchd needs from the host: systemd, the bus, tmux, the kernel. One owner file per library."""
