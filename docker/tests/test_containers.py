"""One host mounts another: as an ordinary user, with shells alongside, with the server away and back, two at a time."""

from __future__ import annotations

from pathlib import Path

from docker.tests.hosts import Hosts, wait_for

# Three keepalives of a second each that get no answer (docker/keys), and some for a busy machine.
NOTICED_S = 20.0


def test_a_mount_logs_in_once_and_everything_rides_on_it(hosts: Hosts, tmp_served: Path) -> None:
    hosts.client.run(f"sshmuxfs server:{tmp_served} mnt")
    try:
        hosts.client.run("echo from the mount > mnt/one && sync mnt/one")
        assert hosts.server.run(f"cat {tmp_served}/one").stdout == "from the mount\n"
        assert hosts.client.run("ssh server 'echo $USER'").stdout == "ann\n"
        hosts.client.run("mkdir -p tree/a && echo x > tree/a/b && rsync -a tree/ server:/srv/data/t/tree/")
        assert hosts.client.run("cat mnt/tree/a/b").stdout == "x\n"
        hosts.client.run("echo put mnt/one /srv/data/t/two | sftp -q -b - server")
        hosts.client.run("scp -q server:/srv/data/t/two got && cmp got mnt/one")
        hosts.server.run("git init -q --bare /srv/data/t/bare.git")
        hosts.client.run(
            "rm -rf work && git clone -q server:/srv/data/t/bare.git work 2>/dev/null && cd work"
            " && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m one && git push -q origin HEAD"
        )
        assert hosts.connections() == 1
        assert "sshmuxfs" in hosts.client.run("sshmux status server").stdout
    finally:
        hosts.client.run("fusermount3 -u mnt")
    wait_for(lambda: hosts.connections() == 0, "the connection to end with its last rider")


def test_a_mount_joins_the_master_of_a_shell(hosts: Hosts, tmp_served: Path) -> None:
    hosts.client.run("ssh -fNM server")
    hosts.client.run(f"sshmuxfs server:{tmp_served} mnt")
    try:
        hosts.client.run("echo joined > mnt/file")
        assert hosts.connections() == 1
    finally:
        hosts.client.run("fusermount3 -u mnt")
        hosts.client.run("ssh -O exit server")
    assert hosts.server.run(f"cat {tmp_served}/file").stdout == "joined\n"


def test_a_password_is_asked_for_once(hosts: Hosts, tmp_served: Path) -> None:
    password = "-o PreferredAuthentications=password -o IdentitiesOnly=yes -o IdentityFile=none"
    wrong = hosts.client.run(
        f"sshmuxfs {password} -o password_stdin -o NumberOfPasswordPrompts=1 server:{tmp_served} mnt",
        stdin="wrong\n",
        check=False,
    )
    assert wrong.returncode != 0
    assert "denied" in wrong.stderr.lower()
    hosts.client.run(f"sshmuxfs {password} -o password_stdin server:{tmp_served} mnt", stdin="correct horse\n")
    try:
        assert hosts.client.run("ssh -o BatchMode=yes -o PubkeyAuthentication=no server echo in").stdout == "in\n"
        assert hosts.connections() == 1
    finally:
        hosts.client.run("fusermount3 -u mnt")


def test_two_clients_see_each_other(hosts: Hosts, tmp_served: Path) -> None:
    for client in (hosts.client, hosts.other):
        client.run(f"sshmuxfs server:{tmp_served} mnt")
    try:
        for number in range(20):
            writer, reader = (hosts.client, hosts.other) if number % 2 else (hosts.other, hosts.client)
            writer.run(f"echo {number} > mnt/shared")
            assert reader.run("cat mnt/shared").stdout == f"{number}\n"
        assert hosts.connections() == 2
    finally:
        for client in (hosts.client, hosts.other):
            client.run("fusermount3 -u mnt")


def test_the_server_is_cut_off_and_comes_back(hosts: Hosts, tmp_served: Path) -> None:
    hosts.client.run(f"sshmuxfs -o deadline=5 server:{tmp_served} mnt")
    try:
        hosts.client.run("echo before > mnt/file")
        with hosts.client.start("ssh server sleep 100") as shell:
            wait_for(lambda: "sleep 100" in hosts.server.run("ps -eo args").stdout, "the shell's command")
            hosts.server.cut_off()
            try:
                # Keepalives go unanswered: the shell is told, and nothing on the mount waits for ever.
                assert shell.wait(NOTICED_S) == 255
                assert hosts.client.run("cat mnt/new", check=False, deadline_s=NOTICED_S).returncode == 1
                hosts.client.run("grep -q ' /home/ann/mnt fuse' /proc/mounts")
                assert hosts.client.run("ssh -O check server", check=False).returncode == 255
            finally:
                hosts.server.bring_back()
    finally:
        hosts.client.run("fusermount3 -u mnt")
    hosts.client.run(f"sshmuxfs server:{tmp_served} mnt")
    try:
        assert hosts.client.run("cat mnt/file").stdout == "before\n"
    finally:
        hosts.client.run("fusermount3 -u mnt")


def test_root_mounts_for_everybody(hosts: Hosts, tmp_served: Path) -> None:
    hosts.client.run(f"sshmuxfs -o allow_other,default_permissions ann@server:{tmp_served} mnt", user="root")
    try:
        hosts.client.run("chmod 755 /root", user="root")
        hosts.client.run("echo mine > /root/mnt/file")
        assert hosts.server.run(f"stat -c %U {tmp_served}/file").stdout == "ann\n"
    finally:
        hosts.client.run("fusermount3 -u mnt", user="root")
