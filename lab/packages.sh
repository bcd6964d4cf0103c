#!/bin/sh
# Installs the Debian packages of a list (lab/packages.txt, or the one named) that are missing, and says which and why.
set -eu
list=${1:-$(dirname "$0")/packages.txt}
missing=""
while read -r package why; do
    case "$package" in '' | '#'*) continue ;; esac
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
        missing="$missing $package"
        echo "  missing: $package ($why)"
    fi
done <"$list"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "packages can be installed by root only; as root: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
started=$(date +%s)
export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 "$@"; }
log=$(mktemp)
# Debian starts a daemon as soon as it is installed. The lab runs libvirtd in namespaces; the machine's own is not ours
# to start. policy-rc.d is Debian's way to say so; one that exists already is the machine owner's and stays.
policy=/usr/sbin/policy-rc.d
ours=""
if [ ! -e "$policy" ]; then
    ours=$policy
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
trap 'rm -f "$log" $ours' EXIT
trap 'exit 1' INT TERM
install() {
    # shellcheck disable=SC2086  a list of words is meant
    apt install -y --no-install-recommends $missing >"$log" 2>&1
}
echo "  installing them with apt-get"
# A machine whose lists are missing or old gets new ones, once.
if ! install; then
    echo "  apt does not find them all: updating its lists first"
    apt update >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
    install || { cat "$log" >&2; exit 1; }
fi
echo "  packages installed in $(($(date +%s) - started)) s"
