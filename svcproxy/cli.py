"""The command line: parses kube-proxy's flags, runs the daemon and returns an exit code.

Names and defaults are kube-proxy's (source: cmd/kube-proxy/app/options.go of Kubernetes 1.36). Flags
that kube-proxy does not have begin with ``--svcproxy-``, except ``--manifests``. Values are parsed by
``svcproxy.config``. Heavy modules are imported only when the daemon is about to run, so that
``--help`` and error messages appear quickly.
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
Programs the Services of a Kubernetes cluster into the kernel of this node. Replaces kube-proxy and
accepts its flags."""


class UsageError(Exception):
    """The command line is malformed; ``problems`` holds one line for each mistake."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def build_parser(epilog: str = "") -> argparse.ArgumentParser:
    """Return the parser. Its values are strings, or ``None`` for flags that are not given."""
    parser = _Parser(
        prog="svcproxy",
        usage="svcproxy [flags]\n       svcproxy COMMAND ...",
        description=_DESCRIPTION,
        epilog=epilog,
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
    """Return the ``Config`` for the arguments; the parameters and exceptions are those of ``read``."""
    return read(argv, environ).config


def read(argv: Sequence[str], environ: Mapping[str, str], epilog: str = "") -> Loaded:
    """Parse the command line; return the settings with warnings.

    Args:
        argv: the arguments, without the program name.
        environ: the environment, which shows whether the process runs in a pod.
        epilog: what ``--help`` prints after the flags.

    Raises:
        UsageError: a flag is unknown, or its value is missing.
        ConfigError: values are invalid, no source of Services is given, or the file of
            ``--config`` cannot be read.
        SystemExit: ``--help`` or ``--version`` was given.
    """
    values, rest = build_parser(epilog).parse_known_args(
        [_with_dashes(argument) for argument in argv]
    )
    settings = {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in vars(values).items()
        if value is not None
    }
    _print_version(settings.pop("version", "false"))
    try:
        loaded = _with_file(settings) if settings.get("config") else from_settings(settings)
    except ConfigError as error:
        if rest:
            raise UsageError(*_unknown_arguments(rest), *error.problems) from error
        raise
    if rest:
        raise UsageError(*_unknown_arguments(rest))
    config = loaded.config
    in_pod = environ.get("KUBERNETES_SERVICE_HOST") and environ.get("KUBERNETES_SERVICE_PORT")
    needs_source = not (config.write_config_to or config.cleanup or config.init_only)
    sources = (config.kubeconfig, config.master, config.manifests, in_pod)
    if needs_source and not any(sources):
        raise ConfigError(
            "no source of Services: set --kubeconfig=FILE or --manifests=DIR, or run in a "
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


def _print_version(asked: str) -> None:
    """Print the version as kube-proxy does.

    ``--version=vX.Y.Z`` makes kube-proxy report another version; it has no effect here.
    """
    if asked != "raw" and asked.startswith("v"):
        return
    if asked not in {"raw", "true", "false"}:
        raise UsageError(f"--version={asked!r}: write --version, or leave it out")
    if asked != "false":
        sys.stdout.write(f"svcproxy {__version__}\n")
        raise SystemExit(0)


def _with_dashes(argument: str) -> str:
    """Accept ``--proxy_mode`` for ``--proxy-mode``, as kube-proxy does."""
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument


def _unknown_arguments(rest: Sequence[str]) -> list[str]:
    """Return a message for each argument that the parser did not recognise.

    An argument without dashes may be the value of an unknown flag before it. It is reported only
    if there is no unknown flag.
    """
    flags = [argument.partition("=")[0] for argument in rest if argument.startswith("-")]
    if not flags:
        return [f"unexpected argument {rest[0]!r}; every setting is a flag, see --help"]
    return [f"unknown flag {flag}; {_remedy(flag.lstrip('-'))}" for flag in flags]


def _remedy(name: str) -> str:
    near = difflib.get_close_matches(name, [*FLAGS, "help", "version"], n=1)
    return f"did you mean --{near[0]}?" if near else "see --help"


def main(argv: Sequence[str] | None = None, epilog: str = "") -> int:
    """Run the daemon until it is asked to stop.

    Args:
        argv: the arguments; by default those of the process.
        epilog: what ``--help`` prints after the flags.

    Returns:
        0 after an orderly stop, 1 if the daemon could not start, 2 for a malformed command line.
    """
    try:
        loaded = read(sys.argv[1:] if argv is None else argv, os.environ, epilog)
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
    """Import the daemon, without the optional library ``rich`` and without garbage collections.

    structlog imports ``rich`` if it is installed, which costs 4 MB and delays the first rules; its
    colours are not used. All imported objects stay, so collections would only take time: a tenth of
    the import.
    """
    gc.disable()
    try:
        with _hiding("rich"):
            import svcproxy.daemon  # noqa: F401, PLC0415 - imports everything; keep --help quick
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
def _hiding(library: str) -> Iterator[None]:
    """Make imports of an optional library fail for the duration of the block."""
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    known = library in modules
    if not known:
        modules[library] = None
    try:
        yield
    finally:
        if not known:
            del modules[library]


def _stderr_is_writable() -> bool:
    """Whether stderr accepts a few lines now: writing to a full pipe would block the exit."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    return bool(poll.poll(500))


def _fail(*lines: str, code: int = 1) -> int:
    if sys.stderr is not None and _stderr_is_writable():  # else it was closed before the start
        try:
            sys.stderr.write("".join(f"svcproxy: {line}\n" for line in lines))
            sys.stderr.flush()
        except OSError:
            sys.stderr = None  # no reader; flushing it again at exit would change the exit code
    return code
