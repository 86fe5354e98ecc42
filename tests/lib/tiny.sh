# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What the tiny-guest tests share: our own freestanding guest (tests/guest-tiny) runs under $VMM, on any KVM, also one in software.
#
#   tiny_disk [SIZE [FORMAT]]     makes ./disk (16M, qcow2)
#   tiny_run TEST [OPTION...]     runs it to its end; it must pass
#   tiny_start TEST [OPTION...]   in the background: $tiny_pid, console in $tiny_console
#
# On top of test.sh. VMM=qemu-system-x86_64 runs them against QEMU (emulated, as it has no software KVM of its own kind), which
# is how most of them were proved themselves.
# shellcheck source=tests/lib/test.sh
. "$(dirname "${BASH_SOURCE[0]}")/test.sh"

tiny_image=$VMM_BUILD/tests/guest-tiny/tiny.bin
tiny_pid=''
tiny_count=0
tiny_console=/dev/null
tiny_options=(-machine q35 -m 64 -smp 2 -display none -serial stdio -no-reboot -device isa-debug-exit,iobase=0x501,iosize=2)
case $VMM in
*qemu-system-x86_64) tiny_options+=(-accel tcg -cpu max -nic none -vga none) ;;
*) [[ -r /dev/kvm && -w /dev/kvm ]] || skip "needs /dev/kvm" ;;
esac

trap 'tiny_cleanup' EXIT
tiny_cleanup()
{
    local status=$?
    [[ -z $tiny_pid ]] || kill -KILL "$tiny_pid" 2>/dev/null || true
    if ((status != 0 && status != 77)) && [[ -e $tiny_console ]]; then
        echo "--- the guest's console and the monitor's standard error:"
        tail -n 40 "$tiny_console" "$tiny_console.stderr" 2>/dev/null || true
    fi
}

tiny_disk()
{
    qemu-img create -q -f "${2:-qcow2}" disk "${1:-16M}"
}

# A virtio-blk on ./disk as the guest expects it, with these further -drive and -device options.
tiny_blk()
{
    tiny_blk_options=(-drive "file=disk,if=none,id=d0,discard=unmap${1:+,$1}"
        -device "virtio-blk-pci,drive=d0,disable-legacy=on,serial=TINY-1,num-queues=4${2:+,$2}")
}

tiny_start()
{
    local test=$1
    shift
    tiny_count=$((tiny_count + 1))
    tiny_console=$TEST_TMP/console-$tiny_count
    "$VMM" "${tiny_options[@]}" -kernel "$tiny_image" -append "test=$test" "$@" </dev/null >"$tiny_console" 2>"$tiny_console.stderr" &
    tiny_pid=$!
}

# tiny_wait STATUS: the monitor ends by itself, with this status.
tiny_wait()
{
    local status=0
    wait "$tiny_pid" || status=$?
    tiny_pid=''
    ((status == $1)) || fail "the monitor ended with status $status, not $1"
}

tiny_run()
{
    tiny_start "$@"
    tiny_wait 0
    grep -qx "passed: $1" "$tiny_console" || fail "the guest did not say that it passed"
}

# In a loop that waits for something: a moment, if the machine still lives.
tiny_moment()
{
    kill -0 "$tiny_pid" 2>/dev/null || fail "the machine has ended"
    sleep 0.05
}

# tiny_expect REGEX: waits until a line of the console matches.
tiny_expect()
{
    until grep -qE "$1" "$tiny_console"; do
        kill -0 "$tiny_pid" 2>/dev/null || { grep -qE "$1" "$tiny_console" || fail "the guest ended without saying '$1'"; }
        sleep 0.05
    done
}

# No message of the monitor but those that match the regular expression.
tiny_quiet()
{
    local text
    text=$(grep -vE "${1:-^$}" "$tiny_console.stderr" || true)
    [[ -z $text ]] || fail "the monitor says: $text"
}
