# Shared by the scripts beside it; sourced, never run. POSIX sh. Leaves us in the checkout.

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
base=${BASE:-sshmuxfs-base}
engine_directory=
engine_pid=

say() { echo "docker/${0##*/}: $*" >&2; }

die() {
    say "$*"
    exit 1
}

# An engine that answers: what is there, else one of our own, in a directory of its own, ended by end_engine.
need_engine() {
    if command -v docker >/dev/null && docker version >/dev/null 2>&1; then
        return 0
    fi
    [ "$(id -u)" = 0 ] || die "no Docker engine answers, and only root can start one: start it, or run this as root"
    missing=
    for pair in dockerd:docker.io debootstrap:debootstrap iptables:iptables; do
        command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
    done
    if [ -n "$missing" ]; then
        say "installing$missing"
        apt-get update -q >&2
        # shellcheck disable=SC2086 -- a list of words
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing >&2
    fi
    engine_directory=$(mktemp -d /tmp/smx-engine-XXXXXX)
    DOCKER_HOST=unix://$engine_directory/docker.sock
    export DOCKER_HOST
    say "starting a Docker engine of our own in $engine_directory"
    # Its networks are internal: nothing of the machine's own network is touched.
    dockerd --host "$DOCKER_HOST" --data-root "$engine_directory/data" --exec-root "$engine_directory/exec" \
        --pidfile "$engine_directory/pid" --bridge none --iptables=false --ip6tables=false \
        >"$engine_directory/log" 2>&1 &
    engine_pid=$!
    tries=0
    until docker version >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 60 ] || ! kill -0 "$engine_pid" 2>/dev/null; then
            tail -n 20 "$engine_directory/log" >&2
            die "the Docker engine did not start"
        fi
        sleep 0.5
    done
}

# End the engine that need_engine started, by its own pid, and remove what it kept.
end_engine() {
    [ -n "$engine_pid" ] || return 0
    kill "$engine_pid" 2>/dev/null || true
    wait "$engine_pid" 2>/dev/null || true
    engine_pid=
    # Its namespaces and layers are mounts below its directory, some of which it leaves.
    awk -v at="$engine_directory/" 'index($2, at) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount
    rm -rf "$engine_directory"
}

# A Debian to build on, as the image $base: the one there is, the one that can be pulled, or one made here.
need_base() {
    docker image inspect "$base" >/dev/null 2>&1 && return 0
    if timeout 60 docker pull -q debian:12-slim >/dev/null 2>&1; then
        docker tag debian:12-slim "$base"
        return 0
    fi
    [ "$(id -u)" = 0 ] || die "debian:12-slim cannot be pulled, and only root can make a base image with debootstrap"
    command -v debootstrap >/dev/null || die "debian:12-slim cannot be pulled, and there is no debootstrap to make one"
    say "debian:12-slim cannot be pulled: making a base image with debootstrap"
    tree=$(mktemp -d /tmp/smx-base-XXXXXX)
    if ! debootstrap --variant=minbase bookworm "$tree" >"$tree.log" 2>&1; then
        tail -n 20 "$tree.log" >&2
        rm -rf "$tree" "$tree.log"
        die "debootstrap failed"
    fi
    tar -C "$tree" -c . | docker import - "$base" >/dev/null
    rm -rf "$tree" "$tree.log"
}

# The images sshmuxfs-server and sshmuxfs-client.
build_images() {
    # What signs the package indexes' certificates here may be the network's own authority.
    cp /etc/ssl/certs/ca-certificates.crt docker/client/ca-certificates.crt 2>/dev/null ||
        : >docker/client/ca-certificates.crt
    for name in server client; do
        say "building sshmuxfs-$name"
        log=$(mktemp /tmp/smx-build-XXXXXX)
        # The classic builder is in every engine; the host's network is the one that reaches the packages.
        if ! DOCKER_BUILDKIT=0 docker build --network host --build-arg BASE="$base" \
            -t "sshmuxfs-$name" -f "docker/$name/Dockerfile" . >"$log" 2>&1; then
            tail -n 40 "$log" >&2
            rm -f "$log"
            die "building sshmuxfs-$name failed"
        fi
        rm -f "$log"
    done
}
