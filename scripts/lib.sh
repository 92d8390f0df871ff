# Shared by the scripts beside it; sourced, never run. POSIX sh. Leaves us in the checkout, with sbin on the PATH.

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1
venv=$root/.venv
stamp=$venv/.set-up
# Debian keeps sshd and others where an ordinary user's PATH does not look.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

# What is needed: the Debian package, and the command that succeeds when it is there (on other systems too).
needs_always='
fuse3|command -v fusermount3
libfuse3-dev|pkg-config --exists fuse3
gcc|command -v gcc
libc6-dev|echo "#include <stdio.h>" | gcc -E -
pkg-config|command -v pkg-config
openssh-client|command -v ssh && command -v scp && command -v sftp && command -v ssh-keygen
openssh-server|command -v sshd
openssh-sftp-server|ls /usr/lib/openssh/sftp-server || ls /usr/libexec/openssh/sftp-server || ls /usr/lib/ssh/sftp-server
git|command -v git
'
needs_test='
rsync|command -v rsync
sqlite3|command -v sqlite3
make|command -v make
tar|command -v tar
xauth|command -v xauth
curl|command -v curl
util-linux|command -v setpriv && command -v unshare && command -v setsid
putty-tools|command -v plink && command -v pscp && command -v psftp && command -v puttygen
'
needs_bench='
sshfs|command -v sshfs
putty-tools|command -v plink && command -v psftp
tar|command -v tar
'

say() { echo "${0##*/}: $*" >&2; }

die() {
    say "$*"
    exit 1
}

# needs WORD...: the table for the words given (test, bench).
needs() {
    echo "$needs_always"
    for word in "$@"; do
        case $word in
            test) echo "$needs_test" ;;
            bench) echo "$needs_bench" ;;
        esac
    done
}

# missing WORD...: the Debian packages of what is not there, in one line.
missing() {
    needs "$@" | sort -u | while IFS='|' read -r package probe; do
        # The table has empty lines, and the probe may itself hold the separator.
        [ -n "$package" ] || continue
        sh -c "$probe" >/dev/null 2>&1 </dev/null || printf ' %s' "$package"
    done
}

# usable_python COMMAND: its version is one of ours, and it can make environments and compile extensions.
usable_python() {
    "$1" -c '
import ensurepip, os, sys, sysconfig, venv
fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (fits and os.path.exists(header)))
' >/dev/null 2>&1
}

# find_python: the first usable one; $PYTHON has the first word, then whatever the user calls python3.
find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if usable_python "$candidate"; then
            # The program itself: a version manager's shim may mean another one tomorrow.
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

# need_fuse: mounting works only where the kernel offers it.
need_fuse() {
    [ -c /dev/fuse ] || die "there is no /dev/fuse: run 'modprobe fuse' as root, or start the container with" \
        "--device /dev/fuse --cap-add SYS_ADMIN"
    [ -r /dev/fuse ] && [ -w /dev/fuse ] || die "/dev/fuse is not yours to open: run 'chmod 666 /dev/fuse' as root"
}
