# SPDX-License-Identifier: LGPL-2.1-or-later
"""ccorch-web: the dashboard, a client of the D-Bus API like ccorchctl. Installed as the package ``ccorchweb``."""
