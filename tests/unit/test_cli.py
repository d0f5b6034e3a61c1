import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import svcproxy
from svcproxy.cli import UsageError, main, parse, read
from svcproxy.config import FLAGS, Config, ConfigError, Loaded, LogFormat, default_of
from svcproxy.config.parsing import Bind
from svcproxy.kube.source import SourceError
from svcproxy.observe.http_server import BindError

KUBEADM = Path(__file__).parent / "config/files/kubeadm.yaml"
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}


class StartupError(Exception):
    pass


class FakeDaemon(ModuleType):
    StartupError = StartupError

    def __init__(self) -> None:
        super().__init__("svcproxy.daemon")
        self.configs: list[Config] = []
        self.warnings: tuple[str, ...] = ()
        self.file = b""
        self.result: int | Exception = 0

    def run(self, config: Config, warnings: Sequence[str] = (), file: bytes = b"") -> int:
        self.configs.append(config)
        self.warnings = tuple(warnings)
        self.file = file
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    fake = FakeDaemon()
    monkeypatch.setitem(sys.modules, "svcproxy.daemon", fake)
    monkeypatch.setattr(svcproxy, "daemon", fake, raising=False)
    for name in POD:
        monkeypatch.delenv(name, raising=False)
    return fake


def usage(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(argv, POD)
    return str(caught.value)


def test_no_flags_give_the_defaults() -> None:
    assert parse([], POD) == Config()


def test_value_after_equals_sign_or_space() -> None:
    assert parse(["--cluster-cidr=10.0.0.0/8"], POD) == parse(["--cluster-cidr", "10.0.0.0/8"], POD)


@pytest.mark.parametrize("argv", [["-v", "3"], ["-v=3"], ["-v3"], ["--v=3"], ["--v", "3"]])
def test_every_spelling_of_verbosity(argv: list[str]) -> None:
    assert parse(argv, POD).verbosity == 3


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--masquerade-all"], True),
        (["--masquerade-all=true"], True),
        (["--masquerade-all=1"], True),
        (["--masquerade-all=false"], False),
        (["--masquerade-all", "--v=1"], True),
    ],
)
def test_boolean_flags(argv: list[str], value: bool) -> None:  # noqa: FBT001 - a parameter set
    assert parse(argv, POD).masquerade_all is value


def test_underscores_are_accepted_in_names_only() -> None:
    assert parse(["--hostname_override=a_b"], POD).hostname_override == "a_b"


def test_the_last_of_repeated_flags_counts() -> None:
    assert parse(["--v=1", "--v=2"], POD).verbosity == 2


def test_repeated_lists_add_up() -> None:
    config = parse(["--nodeport-addresses=10.0.0.0/8", "--nodeport-addresses=fd00::/8"], POD)
    assert config.nodeport_addresses == ("10.0.0.0/8", "fd00::/8")


def test_empty_bind_address_disables() -> None:
    assert parse(["--metrics-bind-address="], POD).metrics_bind_address is None
    assert parse(["--metrics-bind-address", ""], POD).metrics_bind_address is None


def test_svcproxys_own_flags() -> None:
    config = parse(["--svcproxy-iptables-variant=nft", "--manifests=/m"], {})
    assert (config.iptables_variant, config.manifests) == ("nft", "/m")


def test_typical_kube_proxy_arguments() -> None:
    config = parse(
        [
            *("--kubeconfig=/k", "--hostname-override=N1", "--cluster-cidr=10.0.0.0/8,fd00::/8"),
            *("--healthz-bind-address=[::]:10256", "--logging-format=json", "--profiling=false"),
        ],
        {},
    )
    assert config == Config(
        kubeconfig="/k",
        hostname_override="n1",
        cluster_cidrs=("10.0.0.0/8", "fd00::/8"),
        healthz_bind_address=Bind("::", 10256),
        logging_format=LogFormat.JSON,
    )


def test_an_unknown_flag_suggests_the_nearest() -> None:
    assert usage("--proxy-mod=x") == "unknown flag --proxy-mod; did you mean --proxy-mode?"
    assert usage("-kubeconfig", "x") == "unknown flag -kubeconfig; did you mean --kubeconfig?"
    assert usage("--qqqqq") == "unknown flag --qqqqq; see --help"


def test_all_mistakes_are_reported_together(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--proxy-mod", "x", "--qqqqq", "--v=much", "--oom-score-adj=9999"]
    assert main(argv) == 2
    assert capsys.readouterr().err.splitlines() == [
        "svcproxy: unknown flag --proxy-mod; did you mean --proxy-mode?",
        "svcproxy: unknown flag --qqqqq; see --help",
        "svcproxy: -v=much: not a whole number from 0 to 2147483647",
        "svcproxy: --oom-score-adj=9999: not a whole number from -1000 to 1000",
    ]


def test_abbreviated_flags_are_refused() -> None:
    assert usage("--hostname=x").startswith("unknown flag --hostname;")


def test_positional_arguments_are_refused() -> None:
    assert usage("start") == "unexpected argument 'start'; every setting is a flag, see --help"


def test_a_missing_value() -> None:
    assert "expected one argument" in usage("--kubeconfig")


def test_without_a_source_the_error_names_all_three() -> None:
    for environ in ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}):
        with pytest.raises(ConfigError) as caught:
            parse([], environ)
        (line,) = caught.value.problems
        assert all(way in line for way in ("--kubeconfig", "--manifests", "in a pod"))
    assert parse(["--master=http://10.0.0.1"], {}).master == "http://10.0.0.1"


def test_only_boolean_flags_need_no_value() -> None:
    of_fields = {
        name: isinstance(getattr(Config(), flag.setting.fields[0]), bool)
        for name, flag in FLAGS.items()
        if flag.setting.fields
    }
    assert {name for name, boolean in of_fields.items() if boolean} == {
        name for name in of_fields if not FLAGS[name].placeholder
    }


def test_the_shown_defaults_parse_to_the_defaults() -> None:
    shown = [f"--{name}={text}" for name in FLAGS if (text := default_of(FLAGS[name]))]
    assert len(shown) > 40
    assert read(shown, POD) == Loaded(Config())


def test_main_runs_the_daemon(daemon: FakeDaemon) -> None:
    daemon.result = 7
    assert main(["--manifests=/m"]) == 7
    assert daemon.configs == [Config(manifests="/m")]


@pytest.mark.parametrize("error", [StartupError, SourceError, BindError, ConfigError])
def test_startup_errors_are_one_line(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    daemon.result = error("no iptables; install it")
    assert main(["--manifests=/m"]) == 1
    assert capsys.readouterr() == ("", "svcproxy: no iptables; install it\n")


def test_unexpected_errors_keep_their_traceback(daemon: FakeDaemon) -> None:
    daemon.result = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["--manifests=/m"])


def test_invalid_values_exit_with_1_and_one_line_each(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--v=x", "--proxy-mode=userspace"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("svcproxy: -") for line in lines)
    assert daemon.configs == []


def test_usage_errors_exit_with_2(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--hostname", "n1"]) == 2
    assert capsys.readouterr().err.startswith("svcproxy: unknown flag --hostname; did you mean")


def test_warnings_are_passed_to_the_daemon(daemon: FakeDaemon) -> None:
    argv = ["--manifests=/m", "--source-vip=10.0.0.1", "--healthz-port=10256", "--profiling"]
    assert main([*argv, "--vmodule=proxier=4", "--profiling=false"]) == 0
    assert daemon.warnings == (
        "--healthz-port=10256: deprecated; use --healthz-bind-address",
        "--vmodule=proxier=4: ignored: there are no Go files; use -v",
        "--source-vip=10.0.0.1: ignored: applies to Windows only",
    )


@pytest.mark.parametrize("flag", ["--version", "--version=true", "--version=raw"])
def test_version(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"svcproxy {svcproxy.__version__}\n"


def test_a_version_to_report_is_accepted_without_effect() -> None:
    assert parse(["--version=v1.36.2"], POD) == parse(["--version=false"], POD) == Config()
    assert "--version='x'" in usage("--version=x")


def test_the_file_that_kubeadm_writes_starts_the_daemon(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command line of kubeadm's DaemonSet."""
    assert main([f"--config={KUBEADM}", "--hostname-override=Node-1"]) == 0
    assert daemon.warnings == ()
    assert daemon.file == KUBEADM.read_bytes()
    assert daemon.configs == [
        Config(
            config=str(KUBEADM),
            kubeconfig="/var/lib/kube-proxy/kubeconfig.conf",
            hostname_override="node-1",
            cluster_cidrs=("10.244.0.0/16",),
            ipvs_min_sync_period=0.0,
        )
    ]


def test_a_missing_configuration_file(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config=/nowhere/config.conf"]) == 1
    assert capsys.readouterr().err == (
        "svcproxy: --config=/nowhere/config.conf: No such file or directory; name a file to read\n"
    )


def test_problems_of_a_file_are_reported_like_those_of_flags(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "config.conf"
    path.write_text(KUBEADM.read_text().replace('mode: ""', "mode: 5"))
    assert main([f"--config={path}"]) == 1
    assert capsys.readouterr().err == (
        f"svcproxy: {path}: mode=5: must be a string, but is a number; put it in quotes\n"
    )
    assert daemon.configs == []


def test_written_settings_read_back(daemon: FakeDaemon, tmp_path: Path) -> None:
    path = tmp_path / "written.yaml"
    flags = ["--proxy-mode=nftables", "--iptables-sync-period=20s", "--cluster-cidr=fd00::/64"]
    assert main([*flags, f"--write-config-to={path}"]) == 0
    assert daemon.configs == []
    ours, written = parse(flags, POD), parse([f"--config={path}"], POD)
    assert written == replace(ours, config=str(path))


def test_settings_that_cannot_be_written(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--write-config-to=/nowhere/o", "--vmodule=a=1"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "svcproxy: warning: --vmodule=a=1: ignored: there are no Go files; use -v",
        "svcproxy: --write-config-to=/nowhere/o: No such file or directory; name a file to write",
    ]


@pytest.mark.parametrize("flag", ["--cleanup", "--init-only"])
def test_runs_without_services_need_no_source(daemon: FakeDaemon, flag: str) -> None:
    assert main([flag]) == 0
    assert len(daemon.configs) == 1


def test_help_shows_every_flag_in_short_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in FLAGS)
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert "(30s)" in shown
    assert "(127.0.0.1:10249)" in shown


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from svcproxy.cli import main; main(['--help'])\n"
        "heavy = {'kubernetes', 'prometheus_client', 'structlog', 'urllib3', 'yaml', 'asyncio'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_the_daemon_does_not_import_rich_and_others_still_can() -> None:
    script = (
        "import sys; from svcproxy.cli import load_daemon; load_daemon()\n"
        "assert 'structlog' in sys.modules and 'rich' not in sys.modules\n"
        "import rich\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_daemon_loads_an_http_client_only_for_an_api_server() -> None:
    script = (
        "import sys, svcproxy.daemon; sys.exit(bool({'kubernetes', 'urllib3'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "svcproxy", "--no-such-flag"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "svcproxy: unknown flag --no-such-flag; see --help\n"


def test_errors_survive_a_closed_stderr() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m svcproxy --nope 2>&-"], check=False
    )
    assert done.returncode == 2


def test_errors_survive_a_closed_pipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "svcproxy", "--nope"], check=False, stderr=writing)
    os.close(writing)
    assert done.returncode == 2
