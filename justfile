# Everything one does with this repository. ./just lists it; ./just VERB does it.

set positional-arguments

golangci := "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0"
goflags := "-trimpath -ldflags='-s -w'"

_list:
    @{{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} --list --unsorted

# Build the binaries into bin/.
build:
    CGO_ENABLED=0 go build {{ goflags }} -o bin/ ./cmd/...

# Show the mesh at work on a small shop of real programs: ./just demo [--for 20s]
demo *args: (_need "iproute2:ip" "redis-server") build
    CGO_ENABLED=0 go build {{ goflags }} -o bin/test/ ./test/demo/...
    @{{ as_root }} bin/test/demo "$@"

# Run everything that can be tested without Kubernetes.
test: _need_for_tests build _formatted _generated
    go vet ./...
    CGO_ENABLED=1 go test -race -timeout 15m $(go list ./... | grep -v /test/)
    go test -timeout 20m ./...

# Look for mistakes that tests do not find.
lint:
    go run {{ golangci }} run

# Write the Go code of api/ anew from its .proto files.
generate out=".": (_need "protobuf-compiler:protoc")
    GOBIN="$PWD/.tools/bin" go install tool
    PATH="$PWD/.tools/bin:$PATH" protoc -I api api/tulle/v1/*.proto \
        --go_out={{ quote(out) }} --go_opt=module=github.com/tulle-mesh/tulle \
        --go-grpc_out={{ quote(out) }} --go-grpc_opt=module=github.com/tulle-mesh/tulle

# Measure against other proxies: ./just bench [NAME...] [--quick]
bench *args: (_need "iproute2:ip" "haproxy" "wrk") build
    CGO_ENABLED=0 go build {{ goflags }} -o bin/test/ ./test/bench/...
    @{{ as_root }} bin/test/bench "$@"

# Compare each binary's size and packages with what was agreed: ./just size [--update]
size *args:
    go test -count=1 -v -run '^TestBinaries$' . -args "$@"

# Remove what the other recipes made.
clean:
    rm -rf bin test/artifacts

# Network namespaces need root; nothing else does.
as_root := if `id -u` == "0" { "exec" } else { "echo 'Network namespaces need root:' sudo; exec sudo" }

_need_for_tests: (_need "gcc" "libc6-dev:/usr/include/stdio.h" "protobuf-compiler:protoc" "iproute2:ip" "iptables" "procps:ps" "curl" "openssl" "python3" "socat" "tcpdump" "nginx-light:nginx" "redis-server" "redis-tools:redis-benchmark" "postgresql:/usr/lib/postgresql" "mariadb-server:mariadbd")

_formatted:
    @bad=$(gofmt -l *.go */); [ -z "$bad" ] || { echo "not formatted (type: gofmt -w .):" $bad >&2; exit 1; }

# The compiler's own version, in a comment, is the only difference allowed.
_generated:
    #!/usr/bin/env bash
    set -euo pipefail
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    {{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} generate "$fresh"
    for file in api/tulle/v1/*.pb.go; do
        diff -u -I '^//.*protoc  *v' "$file" "$fresh/$file" ||
            { echo "$file is not what its .proto says (type: ./just generate)" >&2; exit 1; }
    done

# Each argument is a Debian package, with the program or file it brings after a
# colon where that has another name.
_need *packages:
    #!/usr/bin/env bash
    set -euo pipefail
    PATH=$PATH:/usr/sbin:/sbin
    missing=()
    for want in "$@"; do
        case ${want#*:} in
            /*) [ -e "${want#*:}" ] ;;
            *) command -v "${want#*:}" >/dev/null ;;
        esac || missing+=("${want%%:*}")
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
