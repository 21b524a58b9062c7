# SPDX-License-Identifier: LGPL-2.1-or-later
"""ccorchctl: the command line of ccorch, a D-Bus client of ccorchd."""

__version__ = "0.1.0"
