# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What the performance tests that count (system calls, instructions, allocations) share. Each counts something of a
# run of `img-tool bench` with N requests and of one with 2 N: the difference is what N requests cost, without the
# program's start. Source lib/test.sh first.

under=()

# $raw, $qcow2, and qcow2 images with subclusters and with an external data file, 64 MiB of the same random data each, everything
# allocated. On a disk: on tmpfs requests do not go by the ring.
make_images()
{
    requires_o_direct
    [[ $(stat -f -c %T .) != tmpfs ]] || skip "needs a test folder that is not on tmpfs"
    raw=$TEST_TMP/perf.raw
    qcow2=$TEST_TMP/perf.qcow2
    dd if=/dev/urandom of="$raw" bs=1M count=64 status=none
    "$IMG_TOOL" convert -f raw -O qcow2 "$raw" "$qcow2"
    "$IMG_TOOL" convert -f raw -O qcow2 -o extended_l2=on "$raw" "$TEST_TMP/perf.subclusters"
    "$IMG_TOOL" convert -f raw -O qcow2 -o "data_file=$TEST_TMP/perf.data" "$raw" "$TEST_TMP/perf.data-file"
}

image_of()
{
    echo "$TEST_TMP/perf.$1"
}

# bench KIND OP COUNT [OPTION...]: KIND is raw, qcow2, subclusters or data-file; 4 KiB requests to random places with cache=none; OP is read or write. The array
# `under`, if set, is a command that runs it.
bench()
{
    local kind=$1 format=qcow2 op=$2 count=$3 write=()
    shift 3
    [[ $kind != raw ]] || format=raw
    [[ $op == read ]] || write=(-w --pattern=165)
    "${under[@]}" "$IMG_TOOL" bench -f "$format" -t none -s 4096 -c "$count" --random=1 "${write[@]}" "$@" \
        "$(image_of "$kind")"
}

# json_number KEY: from a flat JSON object on standard input.
json_number()
{
    sed -n "s/^ *\"$1\": *\([0-9]*\).*/\1/p"
}
