"""Commands on local files connect to nothing and write to their output, cache and temporary folder only."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.attacks.strace import TRACED, read_trace, run_all


def test_the_log_of_strace_is_read(tmp_path):
    """Lines as strace writes them: what is allowed is not listed, all else is."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "log").write_text(
        f'7 openat(AT_FDCWD<{tmp_path}>, "{out}/a.csv", O_WRONLY|O_CREAT, 0666) = 3<{out}/a.csv>\n'
        f'7 openat(AT_FDCWD<{tmp_path}>, "/etc/hosts", O_RDONLY|O_CLOEXEC) = 3</etc/hosts>\n'
        '7 openat(AT_FDCWD</>, "/dev/null", O_WRONLY) = 3</dev/null<char 1:3>>\n'
        f'8 openat(AT_FDCWD<{tmp_path}>, "left.txt", O_RDWR|O_CREAT <unfinished ...>\n'
        f'8 mkdir("{out}/../made", 0777) = 0\n'
        f'8 renameat2(AT_FDCWD<{tmp_path}>, "{out}/a", AT_FDCWD<{tmp_path}>, "/opt/b", 0) = 0\n'
        f'8 symlink("/data/x.png", "{out}/link") = 0\n'
        '8 bind(3, {sa_family=AF_INET, sin_port=htons(8000), sin_addr=inet_addr("127.0.0.1")}, 16) = 0\n'
        '8 bind(3, {sa_family=AF_INET, sin_port=htons(8001), sin_addr=inet_addr("127.0.0.1")}, 16) = 0\n'
        '8 connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("8.8.8.8")}, 16) = 0\n'
        '8 connect(3, {sa_family=AF_INET6, sin6_port=htons(443), inet_pton(AF_INET6, "2001:db8::1", &sin6_addr)}, 28)\n'
        '8 connect(3, {sa_family=AF_UNIX, sun_path="/run/docker.sock"}, 110) = -1 ENOENT\n'
        '8 connect(3, {sa_family=AF_UNIX, sun_path="/var/run/nscd/socket"}, 110) = -1 ENOENT\n'
        '8 bind(3, {sa_family=AF_INET6, sin6_port=htons(0), inet_pton(AF_INET6, "::1", &sin6_addr)}, 28) = 0\n'
        '8 execve("/bin/true", ["true"], 0x7 /* 9 vars */) = 0\n'
    )
    traced = read_trace(tmp_path / "log", 0, allowed=[out], port=8000, folder=tmp_path)
    assert traced.writes == sorted([f"{tmp_path}/left.txt", f"{tmp_path}/made", "/opt/b"])
    assert traced.connections == [
        *("bind 127.0.0.1:8001", "connect /run/docker.sock", "connect 2001:db8::1:443", "connect 8.8.8.8:53")
    ]
    assert traced.programs == ["/bin/true"]


def can_trace() -> bool:
    command = ["strace", "-qq", "-o", "/dev/null", "true"]
    return shutil.which("strace") is not None and subprocess.run(command).returncode == 0


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(not can_trace(), reason="system: strace is not installed, or no process may be traced")
@pytest.mark.parametrize("kind", TRACED)
def test_a_command_on_local_files_connects_to_nothing_and_writes_where_it_says(tmp_path, kind):
    traced = run_all([kind], tmp_path)[kind]
    assert traced.status == 0 and traced.calls > 100
    assert traced.connections == [] and traced.writes == []
