"""Leases and results on a real NFS: the kernel's server and two of its clients, in a machine that is emulated.

    python tests/nfs.py [--scratch DIR]

Debian's kernel runs in QEMU (without KVM: minutes), its root the files of this machine, read-only, under a layer that
is thrown away. There it exports an ext4 over NFS 4.2 with root_squash, two network namespaces mount it, which makes
them two clients with a cache each, and nfs_guest.py works on it from both while the server is restarted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

PACKAGES = ["qemu-system-x86", "seabios", "busybox-static", "cpio", "kmod", "nfs-common", "nfs-kernel-server"]
EARLY = ["virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_blk", "ext4", "virtio_rng"]
PASSED = "nfs-test: passed"
MOST_SECONDS = 1200

INIT = """
    #!/bin/busybox sh
    B=/bin/busybox
    $B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
    for module in $($B cat /modules/order); do $B insmod /modules/$module; done
    $B mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /host
    $B mount -t tmpfs t /top; $B mkdir /top/upper /top/work
    $B mount -t overlay -o lowerdir=/host,upperdir=/top/upper,workdir=/top/work o /new
    for kept in dev proc sys; do $B mount --move /$kept /new/$kept; done
    exec $B switch_root /new @script
"""
SCRIPT = """
    #!/bin/bash
    # What runs as the first process of the emulated machine.
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run PYTHONPATH=@paths PYTHONDONTWRITEBYTECODE=1 IDP_LEASE_SECONDS=6
    mount -t tmpfs t /run; mkdir -p /dev/shm; mount -t tmpfs t /dev/shm; chmod 755 /root; mount -t tmpfs t /var/lib/nfs
    modprobe -d @kernel -a nfsd nfs nfsv4 veth
    ip link set lo up
    mkdir -p /srv/export /mnt/a /mnt/b /var/lib/nfs/rpc_pipefs /var/lib/nfs/v4recovery
    touch /var/lib/nfs/etab /var/lib/nfs/rmtab
    mount -t ext4 /dev/vda /srv/export && mkdir /srv/export/lab && chown 1000:1000 /srv/export/lab
    mount -t nfsd nfsd /proc/fs/nfsd
    rpc.mountd -N 2 -N 3
    exportfs -o rw,sync,root_squash,no_subtree_check,fsid=0 '*:/srv/export'
    rpc.nfsd -N 3 -G 10 -L 10 4
    number=1
    for client in a b; do
        ip netns add $client
        ip link add name to-$client type veth peer name eth0 netns $client
        ip addr add 10.0.$number.1/24 dev to-$client; ip link set dev to-$client up
        ip -n $client addr add 10.0.$number.2/24 dev eth0; ip -n $client link set dev eth0 up
        nsenter --net=/run/netns/$client \\
            mount -t nfs4 -o vers=4.2,clientaddr=10.0.$number.2 10.0.$number.1:/ /mnt/$client
        number=$((number + 1))
    done
    grep nfs4 /proc/mounts
    @python @guest /mnt/a /mnt/b
    sync; echo o > /proc/sysrq-trigger; sleep 60
"""


def run(*words: str | Path, **options: object) -> str:
    done = subprocess.run(list(map(str, words)), text=True, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"nfs-test: {' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout}")
    return str(done.stdout)


def install() -> None:
    """Install what is missing, from Debian's packages; the services that they bring are not started."""
    if subprocess.run(["dpkg", "-s", *PACKAGES], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        run("apt-get", "update", "-qq")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES, env=environment)


def kernel(scratch: Path) -> Path:
    """Return a folder with Debian's kernel and its modules, which are not installed."""
    folder = scratch / "kernel"
    if not folder.exists():
        name = run("apt-cache", "depends", "linux-image-amd64").partition("Depends: ")[2].split()[0]
        run("apt-get", "download", "-qq", name, cwd=scratch)
        run("dpkg", "-x", next(scratch.glob(f"{name}_*.deb")), folder)
        run("depmod", "-b", folder, name.removeprefix("linux-image-"))
    return folder


def first_files(scratch: Path, folder: Path, script: Path) -> Path:
    """Return the archive that the kernel begins from: modules for the root, and what mounts it."""
    root = scratch / "initrd"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "modules", "proc", "sys", "dev", "host", "top", "new"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    version = next((folder / "lib" / "modules").iterdir()).name
    order: list[str] = []
    for module in EARLY:
        for line in run("modprobe", "-d", folder, "-S", version, "--show-depends", module).splitlines():
            if line.startswith("insmod") and (path := Path(line.split()[1])).name not in order:
                shutil.copy(path, root / "modules")
                order.append(path.name)
    (root / "modules" / "order").write_text("\n".join(order))
    (root / "init").write_text(textwrap.dedent(INIT).lstrip().replace("@script", str(script)))
    (root / "init").chmod(0o755)
    run("sh", "-c", "find . | cpio -o -H newc --quiet | gzip -1 > ../initrd.gz", cwd=root)
    return scratch / "initrd.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/idp-nfs"))
    scratch = parser.parse_args().scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    install()
    folder, script, disk = kernel(scratch), scratch / "script.sh", scratch / "disk.img"
    here = Path(__file__).resolve()
    words = {
        "@paths": here.parents[1],
        "@kernel": folder,
        "@python": sys.executable,
        "@guest": here.with_name("nfs_guest.py"),
    }
    text = textwrap.dedent(SCRIPT).lstrip()
    for word, value in words.items():
        text = text.replace(word, str(value))
    script.write_text(text)
    script.chmod(0o755)
    disk.unlink(missing_ok=True)
    run("truncate", "-s", "300M", disk)
    run("mkfs.ext4", "-q", "-F", disk)
    command = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "2500",
        "-nographic",
        "-no-reboot",
    ]
    command += ["-nodefaults", "-serial", "stdio", "-device", "virtio-rng-pci"]
    command += ["-kernel", str(next((folder / "boot").glob("vmlinuz-*")))]
    command += ["-initrd", str(first_files(scratch, folder, script)), "-append", "console=ttyS0 quiet panic=-1"]
    command += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
    command += ["-drive", f"file={disk},if=virtio,format=raw"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as guest:
        assert guest.stdout is not None
        passed = False
        for line in guest.stdout:
            print(line, end="", flush=True)
            passed = passed or line.startswith(PASSED)
    if not passed:
        raise SystemExit("nfs-test: failed")


if __name__ == "__main__":
    main()
