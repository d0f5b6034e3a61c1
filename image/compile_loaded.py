"""Compile to byte code what the daemon loads, and nothing else.

The image's root file system is read-only at run time, so byte code must be there before. Most
modules of the Kubernetes client are its generated models, which are never loaded.
"""

import importlib
import pkgutil

import svcproxy

for module in pkgutil.walk_packages(svcproxy.__path__, "svcproxy."):
    if module.name != "svcproxy.__main__":
        importlib.import_module(module.name)
