"""Adds `navsim_configs/plugin` to Hydra's search path: `agent=drivefine` resolves in NAVSIM's scripts.

Hydra finds this by itself, in wheels and editable installs. Imports nothing but Hydra, on purpose: an error
here would break every Hydra application of the environment.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class DriveFineSearchPath(SearchPathPlugin):
    """Only files whose names begin with `drivefine` lie there, so nothing of another program is shadowed."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra at start."""
        search_path.append(provider="drivefine", path="pkg://navsim_configs.plugin")
