# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What the command-line tests share, on top of test.sh: `io`, that is qemu-io, against ours, and lists of command lines.
# shellcheck source=tests/lib/test.sh
. "$(dirname "${BASH_SOURCE[0]}")/test.sh"

requires qemu-img qemu-io
# shellcheck disable=SC2034 # run_both uses it
RUN_BOTH_FILTER="s/^Try '(qemu-img|img-tool) --help'/Try 'PROGRAM --help'/"

# Times and speeds, and what they are made of in -C reports.
readonly io_filter='s#[0-9:.]+ sec \(.*/sec and .* ops/sec\)#TIME#
s#[0-9]+:[0-9:.]+ \(.*/sec and .* ops/sec\)#TIME#
s#^([0-9]+,[0-9]+),[0-9:.]+,[0-9.]+,[0-9.]+$#\1,TIME#'

# io_both ARG...: qemu-io ARG... in ./qemu and our link of that name in ./ours; both streams and the status must be the
# same. What qemu-io prints on standard input mode goes through $io_input, a file (default: nothing).
io_both()
{
    local side program status text qemu_status=''
    local -A out err
    for side in qemu ours; do
        mkdir -p "$TEST_TMP/$side"
        [[ $side == qemu ]] && program=qemu-io || program=$(drop_in qemu-io)
        status=0
        (cd "$TEST_TMP/$side" && timeout 60 "$program" "$@" <"${io_input:-/dev/null}" \
            >"$TEST_TMP/$side.stdout" 2>"$TEST_TMP/$side.stderr") || status=$?
        out[$side]=$(sed -E "$io_filter" "$TEST_TMP/$side.stdout")
        err[$side]=$(<"$TEST_TMP/$side.stderr")
        [[ $side == ours ]] || qemu_status=$status
    done
    check_same "${out[qemu]}" "${out[ours]}" "output of 'qemu-io $*'"
    check_same "${err[qemu]}" "${err[ours]}" "error output of 'qemu-io $*'"
    check_same "$qemu_status" "$status" "exit status of 'qemu-io $*'"
}

# each_line COMMAND <<END: runs COMMAND with the words of each line, which are shell words.
each_line()
{
    local line
    local -a words
    while IFS= read -r line; do
        [[ -n $line && $line != '#'* ]] || continue
        eval "words=($line)"
        "$@" "${words[@]}"
    done
}

# hold PROGRAM ARG...: an `io` in the background, $holder, that has its image open until release.
hold()
{
    [[ -p hold.input ]] || mkfifo hold.input
    : >hold.log # the shell that opens it for the program does so later: what the last one said must not be there until then
    "$@" <hold.input >>hold.log 2>&1 &
    holder=$!
    exec 9>hold.input
    hold_wait 0
}
# held COMMAND...: it has done these. One by one: of lines that come together qemu-io does the first, and waits for more.
held()
{
    local command before
    for command; do
        before=$(hold_prompts)
        printf '%s\n' "$command" >&9
        hold_wait "$before"
    done
}
hold_wait()
{
    until (($(hold_prompts) > $1)); do
        kill -0 $holder 2>/dev/null || fail "io has ended: $(<hold.log)"
        sleep 0.02
    done
}
hold_prompts() { { grep -o '> ' hold.log || true; } | wc -l; }
release()
{
    exec 9>&-
    wait $holder
}

# map_of FILE: where data, zeroes and holes are, one extent a line. Inside what a layer stores, holes of the host's file
# do not count: whether a cluster's unwritten rest is one is up to the writer.
map_of()
{
    qemu-img map --output=json "$1" | python3 -c '
import json, sys
last = None
for e in json.load(sys.stdin):
    kind = (e["depth"], e["present"], e["data"], e["zero"] and not e["data"])
    if last and last[0] == kind:
        last[2] += e["length"]
        continue
    if last:
        print(*last)
    last = [kind, e["start"], e["length"]]
print(*last or ())'
}

# bitmaps IMAGE: the directory, and the bits of each bitmap, as they lie in the image.
bitmaps()
{
    python3 - "$1" <<'END'
import struct, sys
data = open(sys.argv[1], "rb").read()
cluster, at = 1 << struct.unpack(">I", data[20:24])[0], struct.unpack(">I", data[100:104])[0]
print("autoclear", data[95])
while data[at:at + 4] != bytes(4):
    kind, length = struct.unpack(">II", data[at:at + 8])
    if kind == 0x23852875:
        count, _, size, directory = struct.unpack(">IIQQ", data[at + 8:at + 32])
        print(count, "bitmaps", size, "bytes")
        for _ in range(count):
            table, entries, flags, type, granularity, name, extra = struct.unpack(">QIIBBHI", data[directory:directory + 24])
            print(data[directory + 24 + extra:directory + 24 + extra + name], entries, flags, type, granularity, extra)
            for entry in struct.unpack(f">{entries}Q", data[table:table + 8 * entries]):
                place = entry & 0x00FFFFFFFFFFFE00
                print("   ", data[place:place + cluster].rstrip(bytes(1)).hex() if place else entry)
            directory += (24 + extra + name + 7) & ~7
    at += 8 + (length + 7 & ~7)
END
}
