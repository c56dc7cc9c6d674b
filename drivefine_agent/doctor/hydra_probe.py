"""Does `agent=drivefine` resolve in this interpreter? A script: prints one JSON object.

Runs alone, on Python 3.9 or later, with hydra-core 1.2 or later. It asks Hydra itself: which search-path
plugins it has found, and what it composes.
"""

import importlib.metadata
import importlib.util
import json
import os
import sys
import warnings
from typing import Any

GROUP = "agent"
OPTION = "drivefine"


def shadowing_files():
    """Files `hydra_plugins/__init__.py` on the import path. One hides plugins of editable installs."""
    paths = [os.path.join(folder or ".", "hydra_plugins", "__init__.py") for folder in sys.path]
    return [path for path in paths if os.path.isfile(path)]


def owners(paths):
    """Names of the distributions that list one of the files as theirs."""
    found = set()
    for distribution in importlib.metadata.distributions() if paths else ():
        for file in distribution.files or ():
            if str(file).replace("\\", "/") == "hydra_plugins/__init__.py":
                found.add(distribution.metadata["Name"])
    return sorted(found)


def ask_hydra():
    """Plugins, options of the group, and the class that the option names."""
    from hydra import compose, initialize
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    answer: dict[str, Any] = {"target": None, "compose_error": None}
    found = Plugins.instance().discover(SearchPathPlugin)
    answer["plugins"] = sorted(plugin.__module__ + "." + plugin.__name__ for plugin in found)
    with initialize(version_base=None, config_path=None):
        answer["options"] = GlobalHydra.instance().config_loader().get_group_options(GROUP)
        if OPTION in answer["options"]:
            try:
                answer["target"] = compose(overrides=["+" + GROUP + "=" + OPTION])[GROUP]["_target_"]
            except Exception as error:  # whatever it is, it is what the user's command would meet
                answer["compose_error"] = type(error).__name__ + ": " + str(error)
    return answer


def main():
    """Print the report."""
    report: dict[str, Any] = {"executable": sys.executable, "hydra_error": None}
    report["package_found"] = importlib.util.find_spec("drivefine_agent") is not None
    report["shadowing"] = shadowing_files()
    report["shadowing_owners"] = owners(report["shadowing"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            report.update(ask_hydra())
        except Exception as error:  # Hydra that does not import or start is what is to be reported
            report["hydra_error"] = type(error).__name__ + ": " + str(error)
    report["warnings"] = [str(entry.message) for entry in caught]
    print(json.dumps(report))


if __name__ == "__main__":
    del sys.path[0]  # this folder
    main()
