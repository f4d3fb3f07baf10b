#!/usr/bin/env bash
# The last step of an image: removes what must not be the same on every machine made from it, and how this one was reached.
# `seal.sh FOLDER`, as root; FOLDER is where it was uploaded to.
set -euo pipefail

(($# == 1)) || { echo "usage: seal.sh FOLDER" >&2; exit 2; }
((EUID == 0)) || { echo "seal.sh: must be run as root" >&2; exit 2; }
cd /

if command -v cloud-init >/dev/null; then
    cloud-init clean --logs --seed # else a copy takes itself for a machine that has had its first boot
fi
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
rm -f /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys # a copy's first boot puts its owner's there
if [[ -e /etc/machine-id ]]; then
    : >/etc/machine-id # empty, not gone: systemd then makes one
fi
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed
rm -f /root/.*_history /home/*/.*_history
rm -rf /root/.cache /home/*/.cache
apt-get clean
rm -rf /var/lib/apt/lists/*
find /var/log -type f -exec truncate --size 0 {} +
rm -rf -- "$1"
sync
echo "sealed"
