#!/bin/sh
# Turn a root file system in which everything is installed into that of the image: its
# user and directories, bytecode, the SBOM, and nothing that only the build needed.
# The Dockerfile runs it as root inside that file system.
set -eu
here=$(dirname "$0")
python=/opt/hsm-kms/bin/python

# A vendor module may ask for the name or the home directory of its user.
grep -q '^hsm-kms:' /etc/passwd || {
    echo 'hsm-kms:x:10001:' >>/etc/group
    echo 'hsm-kms:x:10001:10001:hsm-kms:/nonexistent:/usr/sbin/nologin' >>/etc/passwd
}
# A named volume takes over owner and mode of the directory that it is mounted on.
install -d -o 10001 -g 10001 -m 0700 /run/hsm-kms /var/lib/hsm-kms
[ -e /etc/hsm-kms ] || install -d -m 0755 /etc/hsm-kms

"$python" -m compileall -q -f -j 0 --invalidation-mode checked-hash /opt/hsm-kms/lib
mkdir -p /usr/share/hsm-kms
"$python" -I "$here/sbom.py" /usr/share/hsm-kms/hsm-kms.cdx.json

apt-get clean
# The mount points of the build's secrets are among these.
rm -rf /etc/apt/apt.conf.d/99build /etc/pip.conf /run/secrets \
    /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old \
    /var/cache/ldconfig/aux-cache /var/lib/dpkg/*-old /etc/passwd- /etc/group- \
    /etc/shadow- /etc/gshadow- /tmp/* /var/tmp/* /root/.cache
find /var/log -type f -delete
find / -xdev -perm /6000 ! -type l -exec chmod u-s,g-s {} +

if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
    # What the build mounts here is not in the image.
    find / -xdev \( -path /dev -o -path /mnt -o -path /proc -o -path /sys \) -prune -o \
        -newermt "@$SOURCE_DATE_EPOCH" \
        -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
fi
/opt/hsm-kms/bin/hsm-kms --version
