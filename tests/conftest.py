"""Settings of all tests."""

import os

from hypothesis import settings

# CI decides about a change, so it tries the same examples each time; everybody else explores.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI") == "true":
    settings.load_profile("ci")
