# Builds a guest program and packs it into root images. Sourced by agent/build and test-guest/build.
#
# An image is cached under the hash of everything it is made from, so that a second build is a look-up, and is
# reproducible byte for byte: no times, no users, no paths of the machine it was built on.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}
musl=x86_64-unknown-linux-musl
gnu=x86_64-unknown-linux-gnu

say() { printf '%s\n' "$*" >&2; }
die() { say "$(basename "$(dirname "$0")")/build: $*"; exit 1; }

# need COMMAND PACKAGE: COMMAND is there, or the message says which Debian package has it.
need() { command -v "$1" >/dev/null 2>&1 || die "$1 is missing; try: apt-get install $2"; }

need_tools() {
    command -v cargo >/dev/null 2>&1 || die "cargo is missing; see https://rustup.rs"
    need mkfs.erofs erofs-utils
    need flock util-linux
    need sha256sum coreutils
}

has_target() {
    local dir
    dir=$(rustc --print target-libdir --target "$1" 2>/dev/null) && ls "$dir"/libstd-*.rlib >/dev/null 2>&1
}

# Sets `target` and the flags to build for it: musl, whose static programs are a third of glibc's size, or glibc
# linked statically where the musl target can be neither found nor fetched.
choose_target() {
    target=$musl
    if ! has_target $musl && ! { command -v rustup >/dev/null 2>&1 && rustup target add $musl >&2 && has_target $musl; }; then
        say "no Rust target $musl: falling back to a static glibc build (apt-get install libc6-dev)"
        target=$gnu
    fi
    # One address and no relocations, segments that share pages, nothing to protect after a relocation that does not
    # happen: every page that is not touched is a page fault less, on the way to the first system call.
    rustflags="-C target-feature=+crt-static -C relocation-model=static"
    rustflags+=" -C link-arg=-Wl,-z,noseparate-code,-z,norelro,--build-id=none,--no-eh-frame-hdr"
    # Panic messages name source files: not those of this machine.
    rustflags+=" --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$repo=/bulkhead"
}

# hash_of PATH...: one hash of the sources below these paths, the tools and the flags.
hash_of() {
    (
        cd "$repo" || exit 1
        find "$@" Cargo.toml Cargo.lock resources/root-image.sh -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
        rustc -vV
        mkfs.erofs -V 2>&1
        # Without the parts that only keep this machine's paths out of the result.
        echo "$target ${rustflags%% --remap*}"
    ) | sha256sum | cut -c1-16
}

# build_program CRATE: builds its program of the same name and sets `program` to its path.
build_program() {
    local name=${target//-/_}
    say "building $1 for $target"
    # RUSTFLAGS in the environment would replace the target's flags.
    env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS "CARGO_TARGET_${name^^}_RUSTFLAGS=$rustflags" \
        cargo build --quiet --manifest-path "$repo/Cargo.toml" --locked --profile guest -p "$1" --target "$target" >&2 ||
        die "cargo could not build $1"
    program=${CARGO_TARGET_DIR:-$repo/target}/$target/guest/$1
}

# test_program CRATE TEST: builds one of its integration tests and prints the path of that program.
test_program() {
    say "building the tests $2 of $1 for $target"
    local built name=${target//-/_}
    # Guests have no libraries.
    built=$(env "CARGO_TARGET_${name^^}_RUSTFLAGS=-C target-feature=+crt-static" \
        cargo test --quiet --manifest-path "$repo/Cargo.toml" --locked --profile e2e -p "$1" --target "$target" \
        --test "$2" --no-run --message-format=json) || die "cargo could not build the tests $2 of $1"
    built=$(sed -n 's/.*"name":"'"$2"'".*"executable":"\([^"]*\)".*/\1/p' <<<"$built")
    [ -x "$built" ] || die "cargo built no program of the tests $2 of $1"
    printf '%s\n' "$built"
}

# lay_out DIR: the root's files. A kernel that is told nothing starts /sbin/init from a disk, and /init from an
# initramfs; `init=/init` saves it a directory. The rest is where file systems are mounted.
lay_out() {
    mkdir -p "$1"/{dev,proc,run,sbin,sys,tmp}
    install -m 0755 "$program" "$1/init"
    ln "$1/init" "$1/sbin/init"
    chmod 0755 "$1" "$1"/*
    find "$1" -exec touch -h -d @0 {} +
}

# make_erofs DIR FILE: an uncompressed EROFS (a decompressor in the guest costs more than the bytes it saves).
make_erofs() {
    mkfs.erofs --quiet -T0 -U00000000-0000-0000-0000-000000000001 --all-root -x-1 "$2" "$1" >&2 ||
        die "mkfs.erofs failed"
}
