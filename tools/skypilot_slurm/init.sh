#!/usr/bin/env bash
# The first process inside: starts munge, sshd and Slurm, says READY, and stays. usage: init.sh SSH_PORT
set -euo pipefail
hostname localhost
mkdir -p /run/munge /run/sshd /run/slurm /var/log/munge /var/lib/munge /etc/munge /var/spool/slurmctld \
    /var/spool/slurmd.h100a /var/spool/slurmd.l40sa
head -c 1024 /dev/urandom >/etc/munge/munge.key
chown -R munge: /run/munge /var/log/munge /var/lib/munge /etc/munge
chmod 400 /etc/munge/munge.key
chmod 755 /run/munge
setpriv --reuid munge --regid munge --clear-groups /usr/sbin/munged
ssh-keygen -A >/dev/null
# Through one login come all of SkyPilot's calls; a session that is refused looks to it like a broken node.
/usr/sbin/sshd -p "$1" -o ListenAddress=127.0.0.1 -o PermitRootLogin=yes -o UsePAM=no \
    -o MaxSessions=100 -o MaxStartups=100
slurmctld
slurmd -N h100a
slurmd -N l40sa
for _ in $(seq 100); do
    [ "$(sinfo -h -N -t idle -o %N | wc -l)" = 2 ] && break
    sleep 0.2
done
sinfo -N
srun -p l40s --gres=gpu:1 true
echo READY
exec sleep infinity
