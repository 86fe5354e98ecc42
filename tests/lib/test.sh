# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What the shell tests share. A test starts with
#
#   #!/bin/bash
#   # One sentence: what is true if this passes.
#   # timeout: 60            (headers: see tests/run --help)
#   . "$(dirname "$0")/../lib/test.sh"
#
# and finds itself in $TEST_TMP, an empty folder of its own, with -eu and pipefail on. It passes by reaching its end, fails
# by `fail`, by any command that fails, or by a sanitizer's report, and is skipped by `requires` or `skip`.
# Given by tests/run: IMG_TOOL and VMM (the programs under test), VMM_BUILD (their build), TEST_TMP, QUICK and LONG (1 or 0), SEED.
set -euo pipefail

if [[ -z ${TEST_TMP-} ]]; then
    echo "run me by: tests/run $(basename "$(dirname "$0")")/$(basename "$0")" >&2
    exit 2
fi

# For tests that need files beside them.
test_dir=$(cd "$(dirname "$0")" && pwd)
readonly test_dir
cd "$TEST_TMP"
RANDOM=$((SEED % 32768)) # what $RANDOM gives follows from SEED
PATH=$PATH:/usr/sbin:/sbin

# A command that fails ends the test (-e); this says which one.
trap 'test_error $? "$BASH_COMMAND" "${BASH_SOURCE[0]##*/}:$LINENO"' ERR
set -E
test_error()
{
    # In a subshell the parent reports.
    ((BASH_SUBSHELL)) || echo "FAILED: $3: status $1 from: $2"
}

fail()
{
    printf 'FAILED: %s\n' "$*"
    exit 1
}

# The reason is the last line of output.
skip()
{
    printf '%s\n' "$*"
    exit 77
}

requires()
{
    local program
    for program; do
        command -v "$program" >/dev/null || skip "needs the program '$program'"
    done
}

requires_root()
{
    [[ $(id -u) == 0 ]] || skip "needs to be root"
}

# requires_o_direct [FOLDER]
requires_o_direct()
{
    local file=${1:-.}/o-direct-probe
    if ! dd if=/dev/zero of="$file" bs=4096 count=1 oflag=direct 2>/dev/null; then
        rm -f "$file"
        skip "needs a file system with O_DIRECT in ${1:-$PWD}"
    fi
    rm -f "$file"
}

# check_same EXPECTED ACTUAL WHAT
check_same()
{
    [[ $1 == "$2" ]] || {
        printf '%s differs: expected (-), got (+)\n' "$3"
        diff -u <(printf '%s\n' "$1") <(printf '%s\n' "$2") | tail -n +3 || true
        fail "$3"
    }
}

# check_status EXPECTED COMMAND...: runs it; its output is in $output (both streams) afterwards.
check_status()
{
    local expected=$1 status=0
    shift
    output=$("$@" 2>&1) || status=$?
    ((status == expected)) || fail "expected status $expected, got $status from: $*"$'\n'"$output"
}

# check_image FILE [leaks]: the installed qemu-img finds nothing wrong; with `leaks`, nothing worse than leaked clusters.
check_image()
{
    local status=0 text
    text=$(qemu-img check "$1" 2>&1) || status=$?
    if ((status == 0)) || { ((status == 3)) && [[ ${2-} == leaks ]]; }; then
        return 0
    fi
    fail "qemu-img check $1: status $status"$'\n'"$text"
}

# A link named qemu-img (qemu-io) to our tool is a drop-in, error prefix and absent hints included. Prints the link's path.
drop_in()
{
    mkdir -p "$TEST_TMP/drop-in"
    ln -sf "$IMG_TOOL" "$TEST_TMP/drop-in/$1"
    echo "$TEST_TMP/drop-in/$1"
}

# run_both ARG...: qemu-img ARG... in ./qemu and img-tool ARG... in ./ours, each in its own folder, so that the same
# relative names can be used. Their standard output, standard error and exit status must be the same, but for the
# program's name at the start of an error line, for `hint:` lines, and for the path of the folder. The common result is
# left in $both_out, $both_err and $both_status. RUN_BOTH_FILTER, a sed -E script, is applied to all output of both
# (say, for sizes on the disk, which differ by right). `run_both_prepare COMMAND...` runs a command in each folder first.
run_both()
{
    local side program status text qemu_status='' what="'img-tool $*' against 'qemu-img $*'"
    for side in qemu ours; do
        mkdir -p "$TEST_TMP/$side"
        [[ $side == qemu ]] && program=qemu-img || program=$IMG_TOOL
        status=0
        (cd "$TEST_TMP/$side" && "$program" "$@" >"$TEST_TMP/$side.stdout" 2>"$TEST_TMP/$side.stderr") || status=$?
        for text in stdout stderr; do
            sed -E -e "s#$TEST_TMP/$side/#DIR/#g" -e "${RUN_BOTH_FILTER-}" -i "$TEST_TMP/$side.$text"
        done
        [[ $side == ours ]] || qemu_status=$status
    done
    sed -i -E 's/^qemu-img: /PROGRAM: /' "$TEST_TMP/qemu.stderr"
    sed -i -E -e 's/^img-tool: /PROGRAM: /' -e '/^hint: /d' "$TEST_TMP/ours.stderr"
    both_status=$qemu_status
    both_out=$(<"$TEST_TMP/qemu.stdout")
    both_err=$(<"$TEST_TMP/qemu.stderr")
    if ((status != qemu_status)); then
        cat "$TEST_TMP/ours.stdout" "$TEST_TMP/ours.stderr"
    fi
    check_same "$qemu_status" "$status" "exit status of $what"
    check_same "$both_out" "$(<"$TEST_TMP/ours.stdout")" "output of $what"
    check_same "$both_err" "$(<"$TEST_TMP/ours.stderr")" "error output of $what"
}

run_both_prepare()
{
    local side
    for side in qemu ours; do
        mkdir -p "$TEST_TMP/$side"
        (cd "$TEST_TMP/$side" && "$@")
    done
}
