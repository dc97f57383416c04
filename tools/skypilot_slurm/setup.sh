#!/usr/bin/env bash
# What `make test-skypilot` needs, once: a Debian root folder with Slurm in it, and SkyPilot in an environment of its own.
# usage: setup.sh UV PYTHON FOLDER
set -euo pipefail
uv=$1 python=$2 folder=$3
mkdir -p "$folder"

# What SkyPilot calls on the machine that it runs on, and what makes the root folder.
missing=()
for tool in rsync ssh debootstrap; do command -v $tool >/dev/null || missing+=("${tool/#ssh/openssh-client}"); done
if ((${#missing[@]})); then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ ! -e "$folder/root.ready" ]; then
    rm -rf "$folder/root"
    suite=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME" || echo bookworm)
    debootstrap --variant=minbase \
        --include=slurm-wlm,munge,openssh-server,rsync,curl,ca-certificates,python3,python3-venv,git,procps,iproute2 \
        "$suite" "$folder/root" http://deb.debian.org/debian >"$folder/debootstrap.log"
    # All of the root folder's own services are started by init.sh, with their ports.
    cp "$uv" "$folder/root/usr/local/bin/uv.real"
    touch "$folder/root.ready"
fi

if [ ! -x "$folder/sky/bin/sky" ]; then
    "$uv" venv --quiet --clear --python "$python" "$folder/sky"
    "$uv" pip install --quiet --python "$folder/sky" 'skypilot[slurm,aws,gcp]==0.14.1' 'moto[server]>=5.1'
fi
