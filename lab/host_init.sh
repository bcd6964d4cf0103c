#!/bin/sh
# What a namespace host does first, as the child of its `tini`: gives itself directories and devices of its own.
# Environment: HOST its name, DISK its state, LIBVIRT_LOG, ORDERS for the keeper, PYTHON. Everything mounted here is
# seen by this host only and vanishes with it.
set -eu
hostname "$HOST"
# Copies of the machine's named namespaces: kept, they would keep alive what is removed out there.
umount -R -l /run/netns 2>/dev/null || true
mount -t tmpfs -o mode=755 skerry-run /run
mkdir -p /run/lock /run/shm
own() {
    mkdir -p "$1"
    mount --bind "$1" "$2"
}
own "$DISK/var-lib-libvirt" /var/lib/libvirt
own "$DISK/etc-libvirt" /etc/libvirt
own "$DISK/var-cache-libvirt" /var/cache/libvirt
own "$DISK/var-log" /var/log
mkdir -p /var/log/libvirt
own "$LIBVIRT_LOG" /var/log/libvirt
# The authority that signs TPMs, which swtpm's user keeps.
authority=/var/lib/swtpm-localca
if [ -d $authority ]; then
    mkdir -p "$DISK/swtpm-localca"
    chown --reference=$authority "$DISK/swtpm-localca"
    own "$DISK/swtpm-localca" $authority
fi

# A /dev of its own: no disks of the machine, and /dev/kvm only where the CPU has the flags. Where they are missing
# the device may exist and still run no guest.
devices="null zero full random urandom tty net/tun fuse loop-control vhost-net userfaultfd"
if grep -qwE 'vmx|svm' /proc/cpuinfo; then devices="$devices kvm"; fi
mkdir -p "$DISK/dev"
mount -t tmpfs -o mode=755,nosuid skerry-dev "$DISK/dev"
for device in $devices /dev/loop[0-9]*; do
    device=${device#/dev/}
    [ -e "/dev/$device" ] || continue
    mkdir -p "$DISK/dev/$(dirname "$device")"
    : >"$DISK/dev/$device"
    mount --bind "/dev/$device" "$DISK/dev/$device"
done
mkdir "$DISK/dev/pts" "$DISK/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 skerry-pts "$DISK/dev/pts"
mount -t tmpfs -o mode=1777 skerry-shm "$DISK/dev/shm"
ln -s pts/ptmx "$DISK/dev/ptmx"
ln -s /proc/self/fd "$DISK/dev/fd"
ln -s /proc/self/fd/0 "$DISK/dev/stdin"
ln -s /proc/self/fd/1 "$DISK/dev/stdout"
ln -s /proc/self/fd/2 "$DISK/dev/stderr"
mount --move "$DISK/dev" /dev

# The agent's state: under a directory that Debian always has, so that no mount point has to be made on the machine.
own "$DISK/srv" /srv
cd /
exec "$PYTHON" -P -m lab.keeper "$ORDERS"
