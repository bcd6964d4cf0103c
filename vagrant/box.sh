#!/bin/sh
# Makes a Debian root a box: `sh box.sh ROOT`, run by mmdebstrap as its last step (lab/box.py). Who may log in, how it
# gets its addresses, and what a lab's host doesn't need at boot.
set -eu
root=$1

echo box >"$root/etc/hostname"
echo '127.0.0.1 localhost box' >"$root/etc/hosts"
echo '/dev/vda / ext4 rw,discard 0 0' >"$root/etc/fstab"

# Vagrant's own key, known to the whole world: Vagrant looks for it, and puts a new one in its place at the first boot.
chroot "$root" useradd --create-home --shell /bin/bash vagrant
install -d -m 700 "$root/home/vagrant/.ssh"
cat >"$root/home/vagrant/.ssh/authorized_keys" <<'KEY'
ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure public key
KEY
chmod 600 "$root/home/vagrant/.ssh/authorized_keys"
chroot "$root" chown -R vagrant:vagrant /home/vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
chmod 440 "$root/etc/sudoers.d/vagrant"
printf 'UseDNS no\nAcceptEnv LANG\n' >"$root/etc/ssh/sshd_config.d/box.conf"

cat >"$root/etc/systemd/network/80-dhcp.network" <<'NETWORK'
[Match]
Name=eth0
[Network]
DHCP=ipv4
LinkLocalAddressing=no
[DHCPv4]
ClientIdentifier=mac
NETWORK
chroot "$root" systemctl -q enable systemd-networkd
chroot "$root" systemctl -q disable systemd-networkd-wait-online
# What a lab's host has no use for, and what would hang up a serial port that scripts print to.
chroot "$root" systemctl -q mask serial-getty@ttyS0.service getty@tty1.service apt-daily.timer apt-daily-upgrade.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer systemd-pstore.service
# Skerry makes its networks itself; libvirt's own would only take an address range.
rm -f "$root/etc/libvirt/qemu/networks/autostart/default.xml"
# What QEMU's machines need to reach their root disk, and nothing more to unpack at each boot.
echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/box"
printf '%s\n' virtio_pci virtio_blk ext4 crc32c_generic >>"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u
# Every boot of every clone is a machine of its own.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
