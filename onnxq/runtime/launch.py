"""What a child process of onnxq runs first: ``python -I launch.py SETTINGS TARGET ARGUMENTS...``; see ``child``.

Settings are JSON: ``path``, the folders to find modules in; ``package``, the folder of onnxq itself. The target is an
absolute path of a script, or the name of a module.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys
import threading


def end_with_parent() -> None:
    """Ends this process when its standard input ends, which is when the parent closes it or dies, however it dies."""
    while True:
        try:
            if not os.read(0, 1):
                os._exit(1)
        except OSError:
            os._exit(1)


def load_onnxq(folder: str) -> None:
    """Makes the onnxq of ``folder`` the one that is imported, whatever the path; it may lie in the current folder."""
    spec = importlib.util.spec_from_file_location(
        "onnxq", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["onnxq"] = module
    spec.loader.exec_module(module)


def main() -> None:
    settings, target = json.loads(sys.argv[1]), sys.argv[2]
    # First as the parent found them: a package that the user put before an installed one stays before it.
    sys.path[:] = dict.fromkeys((*settings["path"], *sys.path))
    threading.Thread(target=end_with_parent, daemon=True).start()
    load_onnxq(settings["package"])
    sys.argv[:] = sys.argv[2:]
    if os.path.isabs(target):
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
