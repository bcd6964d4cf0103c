#!/bin/sh
# Makes a machine of the lab a controller or a host: `sh provision.sh controller|host NAME ADDRESS`, as root, with Skerry's
# packages in /tmp/packages. Again changes nothing. It is what docs/operators.md tells an operator to do.
set -eu
role=$1 name=$2 address=$3
export DEBIAN_FRONTEND=noninteractive
# Not by Vagrant, which restarts all that might care.
if ! ip -4 address show | grep -qF "$address/"; then
    printf '[Match]\nName=eth1\n[Network]\nAddress=%s/24\nLinkLocalAddressing=no\n' "$address" \
        >/etc/systemd/network/70-underlay.network
    networkctl reload
fi
hostnamectl set-hostname "$name"
sed -i "s/^127.0.0.1 .*/127.0.0.1 localhost $name/" /etc/hosts
# What is installed is started when it has its configuration.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Options::=--force-unsafe-io -o DPkg::Options::=--force-confold \
    install -y --no-install-recommends /tmp/packages/*.deb
rm -rf /usr/sbin/policy-rc.d /tmp/packages

case "$role" in
controller)
    cat >/etc/skerry/controller.toml <<END
[link]
names = ["$address"]
END
    if ! [ -e /root/root.token ]; then
        (umask 077 && skerry-controller token --name root >/root/root.token.part)
        systemctl start skerry-controller
        skerry context add lab --url http://127.0.0.1:8080 --token-file /root/root.token.part
        mv /root/root.token.part /root/root.token
    fi
    systemctl start skerry-controller
    ;;
host)
    cat >/etc/skerry/agent.toml <<END
[underlay]
address = "$address"

[pool]
volume_group = "skerry"
END
    # The spare disk: all that is not the root disk.
    disk=$(lsblk -dnpo NAME,TYPE | awk '$2 == "disk" {print $1}' | tail -n 1)
    vgs skerry >/dev/null 2>&1 || { pvcreate -q "$disk" && vgcreate -q skerry "$disk"; }
    lvs skerry/skerry >/dev/null 2>&1 || lvcreate -q -y --type thin-pool -l 90%FREE -n skerry skerry
    ;;
esac
