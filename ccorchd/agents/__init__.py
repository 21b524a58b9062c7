# SPDX-License-Identifier: LGPL-2.1-or-later
"""Agent profiles: one file per kind of agent."""
