"""Runs another kernel in a virtual machine that shares the host's files.

The guest uses the host's root file system, read-only over 9p, with the kernel's modules in
``/lib/modules``; ``/run`` is its own and takes temporary files. It needs no network device, disk
image or KVM. The processor is emulated, and the guest's clock counts instructions: time-outs in
the guest do not depend on the host's speed or load.
"""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from testbed.machines import Finished, MachineError, read, read_finished, write_start

INIT = Path(__file__).with_name("vm_init.sh")
BUSYBOX = Path("/bin/busybox")
CLOCK = "shift=1"
"""One instruction takes 2 ns of guest time, as on a slow real machine. There is one processor:
with two, which alternate under such a clock, the guest had not booted after 90 s."""
MODULES = ("virtio_pci", "9pnet_virtio", "9p")
"""The modules needed to mount the root file system; all others are loaded from there."""


_MARK = "svcproxy.vm"
"""A word on the guest kernel's command line, which the kernel ignores."""


@cache
def inside() -> bool:
    """Return whether this process runs in such a machine."""
    return _MARK in read(Path("/proc/cmdline")).split()


def find_kernel(pattern: str) -> Path:
    """Return the most recently installed kernel image in /boot whose name matches.

    Raises:
        MachineError: there is none.
    """
    found = sorted(Path("/boot").glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise MachineError(f"there is no /boot/{pattern}: ./dev setup installs the packages needed")
    return found[-1]


def run(
    kernel: Path,
    command: Sequence[str],
    *,
    folder: Path,
    timeout: float,
    modules: Sequence[str] = (),
) -> Finished:
    """Boot a kernel, run a command as root, and shut the machine down.

    Args:
        kernel: the image, ``/boot/vmlinuz-<release>``.
        command: the command line.
        folder: the working folder; not below ``/run``, which the guest does not share.
        timeout: seconds that boot, command and shutdown may take together.
        modules: the kernel modules to load first, besides those that are loaded on demand.

    Raises:
        MachineError: a tool is missing, or the command did not end; the message ends with the
            last output.
    """
    with tempfile.TemporaryDirectory(prefix="svcproxy-vm-") as name:
        share = Path(name, "share")
        share.mkdir()
        preparation = f"modprobe -a {shlex.join(modules)}" if modules else ""
        write_start(share, command, folder, preparation)
        initramfs = _initramfs(Path(name), kernel.name.removeprefix("vmlinuz-"))
        reason = _boot(_machine(kernel, initramfs, share), Path(name, "console"), timeout)
        finished = read_finished(share)
        if finished is None:
            seen = read(share / "output") or read(Path(name, "console"))
            raise MachineError(f"the command in the virtual machine {reason}:\n{seen}")
        return finished


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MachineError(f"there is no {name}: ./dev setup installs the packages needed")
    return found


def _initramfs(folder: Path, release: str) -> Path:
    """Create the guest's initramfs: busybox, the init script and the modules."""
    content = folder / "initramfs"
    (content / "bin").mkdir(parents=True)
    (content / "modules").mkdir()
    (content / "dev").mkdir()
    shutil.copy(_static(BUSYBOX), content / "bin/busybox")
    (content / "bin/sh").symlink_to("busybox")
    shutil.copy(INIT, content / "init")
    (content / "init").chmod(0o755)
    modules = _modules(release)
    for module in modules:
        shutil.copy(module, content / "modules")
    order = "".join(f"{module.name}\n" for module in modules)
    (content / "modules/order").write_text(order, encoding="ascii")
    archive = folder / "initramfs.cpio"
    names = "".join(f"{path.relative_to(content)}\n" for path in sorted(content.rglob("*")))
    with archive.open("wb") as output:
        subprocess.run(
            [_tool("cpio"), "--create", "--format=newc", "--quiet"],
            cwd=content,
            input=names.encode(),
            stdout=output,
            check=True,
        )
    return archive


def _static(program: Path) -> Path:
    """Return the path of a program without shared libraries.

    Raises:
        MachineError: it is missing, or needs shared libraries.
    """
    if not program.exists() or b"/ld-linux" in program.read_bytes()[:4096]:
        raise MachineError(f"there is no static {program}: ./dev setup installs busybox-static")
    return program


def _modules(release: str) -> list[Path]:
    """Return the files of modules for the root file system, in the order of their dependencies."""
    done = subprocess.run(
        [_tool("modprobe"), "--set-version", release, "--show-depends", "--all", *MODULES],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MachineError(f"modules of {release}: {done.stderr.strip()}")
    lines = (line.split() for line in done.stdout.splitlines())
    return list(dict.fromkeys(Path(words[1]) for words in lines if words[0] == "insmod"))


def _machine(kernel: Path, initramfs: Path, share: Path) -> list[str]:
    boot = f"console=ttyS0 quiet panic=-1 mitigations=off audit=0 {_MARK}"
    return [
        *(_tool("qemu-system-x86_64"), "-nodefaults", "-no-reboot", "-display", "none"),
        *("-accel", "tcg", "-icount", CLOCK, "-cpu", "max", "-smp", "1", "-m", "2G"),
        *("-kernel", str(kernel), "-initrd", str(initramfs), "-append", boot),
        *("-serial", "stdio"),
        *_folder(Path("/"), "root", "readonly=on,multidevs=remap"),
        *_folder(share, "share", "readonly=off"),
    ]


def _folder(path: Path, tag: str, options: str) -> list[str]:
    doubled = str(path).replace(",", ",,")
    return ["-virtfs", f"local,path={doubled},mount_tag={tag},security_model=none,{options}"]


def _boot(command: list[str], console: Path, timeout: float) -> str:
    """Run the machine until it shuts down; return in words why the command may not have ended."""
    with console.open("wb") as output:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"was not done after {timeout:g} s"
    return f"did not end; the machine did, with status {done.returncode}"
