"""Compiles the modules that the daemon imports, and no others, to byte code.

The image's root file system is read-only at run time, so byte code must be created in the build.
Most modules of the Kubernetes client are generated models, which are never imported.
"""

import importlib
import pkgutil

import svcproxy

for module in pkgutil.walk_packages(svcproxy.__path__, "svcproxy."):
    if module.name != "svcproxy.__main__":
        importlib.import_module(module.name)
