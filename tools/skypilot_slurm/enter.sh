#!/usr/bin/env bash
# Runs in namespaces of its own (mount, pid, host name); what it mounts and starts is gone when it is killed.
# The root folder is only read: each run writes to a layer over it. usage: enter.sh ROOT RUN PORT CACHE
set -euo pipefail
root=$1 run=$2 port=$3 cache=$4 here=$(dirname "$(realpath "$0")")
mkdir -p "$run/upper" "$run/work" "$run/merged" "$cache"
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$root,upperdir=$run/upper,workdir=$run/work" "$run/merged"
root=$run/merged

mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts devpts "$root/dev/pts" -o ptmxmode=666,newinstance
ln -s pts/ptmx "$root/dev/ptmx"
for each in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "$root/dev/${each%:*}" c 1 "${each#*:}"; done
mknod -m 666 "$root/dev/tty" c 5 0
for fd in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
    ln -s "${fd#*:}" "$root/dev/${fd%%:*}"
done
# Slurm hands out "GPUs" by device file; these are none, and nothing opens them.
for number in 0 1 2 3 4 5 6 7; do mknod -m 666 "$root/dev/gpu$number" c 1 3; done

# Names and certificates of this machine, for the packages that SkyPilot installs on its nodes.
for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do
    [ -e "$file" ] && touch "$root$file" && mount --bind "$file" "$root$file"
done
mkdir -p "$root/var/cache/uv"
mount --bind "$cache" "$root/var/cache/uv"

mkdir -p "$root/etc/slurm"
cp "$here/gres.conf" "$here/cgroup.conf" "$root/etc/slurm/"
sed "s/@CTLD@/$port/; s/@NODE1@/$((port + 1))/; s/@NODE2@/$((port + 2))/" "$here/slurm.conf" >"$root/etc/slurm/slurm.conf"
install -m 755 "$here/uv" "$root/usr/local/bin/uv"
install -m 755 "$here/curl" "$root/usr/local/bin/curl"
install -m 755 "$here/init.sh" "$root/init.sh"
install -d -m 700 "$root/root/.ssh"
install -m 600 "$run/key.pub" "$root/root/.ssh/authorized_keys"
printf '127.0.0.1 localhost h100a l40sa\n' >"$root/etc/hosts"
exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /init.sh "$((port + 3))"
