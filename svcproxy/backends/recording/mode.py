"""The recording mode, as the daemon sees it; ``--proxy-mode`` does not offer it."""

from svcproxy.backends.mode_spec import ModeSpec, ReadyBackends, probed
from svcproxy.config import Config


def _make(_config: Config) -> ReadyBackends:
    from svcproxy.backends.recording.backend import RecordingBackend  # noqa: PLC0415

    return ReadyBackends(probed(RecordingBackend))


MODE = ModeSpec(
    name="recording",
    make=_make,
    writes_kernel=False,
)
