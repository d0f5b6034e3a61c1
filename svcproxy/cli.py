"""The command line: kube-proxy's flags in, an exit code out.

Flags are spelled and defaulted as kube-proxy's (source: cmd/kube-proxy/app/options.go of
Kubernetes 1.36); flags of our own begin with ``--svcproxy-``, but for ``--manifests``. Parsing
of values is the business of ``svcproxy.config``. Nothing heavy is imported before the daemon
is really to run, so ``--help`` and complaints are quick.
"""

import argparse
import difflib
import gc
import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from svcproxy import __version__, limits
from svcproxy.config import FLAGS, GROUPS, Config, ConfigError, Loaded, default_of, from_settings
from svcproxy.config.flags import LISTS
from svcproxy.files import UnusableFileError, read_bounded

_DESCRIPTION = """\
Programs the Services of a Kubernetes cluster into the kernel of this node. Takes the place of
kube-proxy and understands its flags."""


class UsageError(Exception):
    """The command line itself is wrong; ``problems`` holds a line for each thing that is."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser; it yields texts only, and ``None`` for flags that were not given."""
    parser = _Parser(
        prog="svcproxy",
        usage="svcproxy [flags]",
        description=_DESCRIPTION,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=36, width=100
        ),
        allow_abbrev=False,
        add_help=False,
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            default = default_of(flag)
            options: dict[str, Any] = {
                "dest": flag.name,
                "help": f"{flag.help} ({default})" if default else flag.help,
                "action": "append" if flag.name in LISTS else "store",
                "metavar": flag.placeholder,
            }
            if not flag.placeholder:
                options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
            names = dict.fromkeys((flag.option, f"--{flag.name}"))
            group.add_argument(*names, **options)
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    group.add_argument(
        "--version", nargs="?", const="true", metavar="true|raw", help="show the version and exit"
    )
    return parser


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Return the ``Config`` that the arguments ask for; arguments and errors are those of ``read``."""
    return read(argv, environ).config


def read(argv: Sequence[str], environ: Mapping[str, str]) -> Loaded:
    """Return what the arguments (without the program name) ask for, with warnings.

    Args:
        argv: the arguments.
        environ: the environment, to see whether we run in a pod.

    Raises:
        UsageError: a flag is unknown or lacks its value.
        ConfigError: values are wrong, or nothing says where Services come from, or the file of
            ``--config`` cannot be read.
        SystemExit: ``--help`` or ``--version`` has been answered.
    """
    values, rest = build_parser().parse_known_args([_dashed(argument) for argument in argv])
    settings = {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in vars(values).items()
        if value is not None
    }
    _answer_version(settings.pop("version", "false"))
    try:
        loaded = _with_file(settings) if settings.get("config") else from_settings(settings)
    except ConfigError as error:
        if rest:
            raise UsageError(*_complaints(rest), *error.problems) from error
        raise
    if rest:
        raise UsageError(*_complaints(rest))
    config = loaded.config
    in_pod = environ.get("KUBERNETES_SERVICE_HOST") and environ.get("KUBERNETES_SERVICE_PORT")
    needs_source = not (config.write_config_to or config.cleanup or config.init_only)
    sources = (config.kubeconfig, config.master, config.manifests, in_pod)
    if needs_source and not any(sources):
        raise ConfigError(
            "no source of Services: give --kubeconfig=FILE, give --manifests=DIR, or run in a "
            "pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set here)"
        )
    return loaded


def _with_file(settings: Mapping[str, str]) -> Loaded:
    from svcproxy.config.precedence import from_file  # noqa: PLC0415 - needs the YAML library

    path = settings["config"]
    try:
        data = read_bounded(Path(path), limits.CONFIG_BYTES)
    except UnusableFileError as error:
        raise ConfigError(f"--config={path} {error}") from None
    except OSError as error:
        raise ConfigError(f"--config={path}: {error.strerror}; name a file to read") from error
    return from_file(settings, data, path)._replace(file=data)


def _answer_version(asked: str) -> None:
    """Print the version where kube-proxy would.

    ``--version=vX.Y.Z`` makes kube-proxy report another version; it changes nothing here.
    """
    if asked != "raw" and asked.startswith("v"):
        return
    if asked not in {"raw", "true", "false"}:
        raise UsageError(f"--version={asked!r}: write --version, or leave it out")
    if asked != "false":
        sys.stdout.write(f"svcproxy {__version__}\n")
        raise SystemExit(0)


def _dashed(argument: str) -> str:
    """Let ``--proxy_mode`` mean ``--proxy-mode``, as kube-proxy does."""
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument


def _complaints(rest: Sequence[str]) -> list[str]:
    """Say what is wrong with arguments that the parser could not place.

    What has no dashes may be the value of an unknown flag before it, and is a problem only where
    there is none.
    """
    flags = [argument.partition("=")[0] for argument in rest if argument.startswith("-")]
    if not flags:
        return [f"unexpected argument {rest[0]!r}; every setting is a flag, see --help"]
    return [f"unknown flag {flag}; {_remedy(flag.lstrip('-'))}" for flag in flags]


def _remedy(name: str) -> str:
    near = difflib.get_close_matches(name, [*FLAGS, "help", "version"], n=1)
    return f"did you mean --{near[0]}?" if near else "see --help"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to stop.

    Returns:
        0 after an orderly stop, 1 when it could not start, 2 for a wrong command line.
    """
    try:
        loaded = read(sys.argv[1:] if argv is None else argv, os.environ)
    except UsageError as error:
        return _fail(*error.problems, code=2)
    except ConfigError as error:
        return _fail(*error.problems)
    except SystemExit as done:
        return int(done.code or 0)
    if loaded.config.write_config_to:
        return _write_config(loaded)
    return _run(loaded)


def _write_config(loaded: Loaded) -> int:
    from svcproxy.config.export import as_yaml  # noqa: PLC0415 - needs the YAML library

    path = loaded.config.write_config_to or ""
    for warning in loaded.warnings:
        _fail(f"warning: {warning}")
    try:
        Path(path).write_text(as_yaml(loaded.config), encoding="utf-8")
    except OSError as error:
        return _fail(f"--write-config-to={path}: {error.strerror}; name a file to write")
    return 0


def load_daemon() -> None:
    """Import the daemon: everything but rich, whose colours it has no use for.

    structlog loads rich wherever it happens to be installed: 4 MB, and time on the way to the
    first rule. The garbage collector rests meanwhile: what is imported stays, and going through
    it again and again would be a tenth of the work.
    """
    gc.disable()
    try:
        with _counting_as_missing("rich"):
            import svcproxy.daemon  # noqa: F401, PLC0415 - brings in everything, --help is quick
    finally:
        gc.enable()


def _run(loaded: Loaded) -> int:
    load_daemon()
    from svcproxy import daemon  # noqa: PLC0415
    from svcproxy.kube.source import SourceError  # noqa: PLC0415
    from svcproxy.observe.http_server import BindError  # noqa: PLC0415

    try:
        return daemon.run(*loaded)
    except ConfigError as error:
        return _fail(*error.problems)
    except (daemon.StartupError, SourceError, BindError) as error:
        return _fail(" ".join(str(error).split()))


@contextmanager
def _counting_as_missing(library: str) -> Iterator[None]:
    """Let those who are imported now go without an optional library."""
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    known = library in modules
    if not known:
        modules[library] = None
    try:
        yield
    finally:
        if not known:
            del modules[library]


def _readable() -> bool:
    """Whether stderr accepts a few lines now; a full pipe would block the exit."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    return bool(poll.poll(500))


def _fail(*lines: str, code: int = 1) -> int:
    if sys.stderr is not None and _readable():  # else it was closed before we came
        try:
            sys.stderr.write("".join(f"svcproxy: {line}\n" for line in lines))
            sys.stderr.flush()
        except OSError:
            sys.stderr = None  # nobody reads; a second try at exit would spoil the exit code
    return code
