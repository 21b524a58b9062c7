# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host: one module for each thing of the machine that ccorch leans on."""
