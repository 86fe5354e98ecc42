# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What the guest tests share: an unmodified Debian kernel boots under $VMM and runs a script. On top of test.sh.
#
#   guest_script NAME <<'END' ... END     the script (busybox sh -e; the disks are /dev/vda, …)
#   guest_boot NAME OPTION...             boots it with these options and waits; script and monitor must end with 0
#
# or, to meddle while it runs: guest_start NAME OPTION..., guest_expect REGEX, guest_end | guest_kill.
# All console output is in $guest_console (a file; guest_text prints it without
# carriage returns and escape sequences).
# VMM=qemu-system-x86_64 runs the same tests against QEMU: that is how they were proved themselves.
# shellcheck source=tests/lib/test.sh
. "$(dirname "${BASH_SOURCE[0]}")/test.sh"

bed=$(cd "$(dirname "${BASH_SOURCE[0]}")/../bed" && pwd)
readonly bed
guest_pid=''
guest_console=/dev/null
guest_memory=${guest_memory:-256M}
guest_kernel=$("$bed/bed" vmlinuz "${guest_flavour:-cloud}")
guest_append="console=ttyS0 earlyprintk=ttyS0 quiet panic=-1 mitigations=off"

vmm_options=(-machine q35 -cpu host)
case $VMM in
*qemu-system-x86_64) vmm_options+=(-accel kvm -nic none) ;;
*) export VMM_LOG=machine ;; # why a machine ended, on its standard error
esac

trap 'guest_cleanup' EXIT
trap 'echo "FAILED: out of time"; exit 124' TERM

guest_cleanup()
{
    local status=$?
    [[ -z $guest_pid ]] || kill -KILL "$guest_pid" 2>/dev/null || true
    if ((status != 0 && status != 77)) && [[ -e $guest_console ]]; then
        echo "--- the guest's console, $guest_console:"
        guest_text | tail -n 60
        echo "--- the monitor's standard error:"
        tail -n 60 "$guest_console.stderr" 2>/dev/null || true
    fi
}

guest_text()
{
    sed -e 's/\r//g' -e 's/\x1b[^A-Za-z]*[A-Za-z]//g' "$guest_console"
}

guest_script()
{
    cat >"$TEST_TMP/$1.sh"
    "$bed/mkguest" -k "${guest_flavour:-cloud}" "$TEST_TMP/$1.cpio" "$TEST_TMP/$1.sh"
}

# In an emulated bed with two processors (QEMU's TCG emulates SVM) about one boot in ten ends in a triple fault while the
# kernel is about its first lines, with QEMU as the monitor as with vmm, and with one processor none in 79. Should it
# come again, the boot is begun again, three times at most, with a note. Nothing of ours can hide in that: a guest that has
# come to its init has left the place.
guest_lost_to_emulator()
{
    grep -q '^model name.*QEMU TCG' /proc/cpuinfo || return 1
    grep -q 'vCPU 0: triple fault' "$guest_console.stderr" || return 1
    ! guest_text | grep -q '^guest: init' || return 1
    ((guest_restarts < 3)) || return 1
    guest_restarts=$((guest_restarts + 1))
    echo "note: $guest_console: a triple fault of the emulated processor before the guest's first step; begun again"
    guest_start "${guest_start_arguments[@]}"
}
guest_restarts=0

# Each start of the same script has a console file of its own. $guest_stdin: a file or FIFO that the console reads.
guest_start()
{
    local name=$1
    guest_start_arguments=("$@")
    shift
    guest_count=$((${guest_count:-0} + 1))
    guest_console=$TEST_TMP/$name-$guest_count.console
    "$VMM" "${vmm_options[@]}" -m "$guest_memory" -nographic -no-reboot -kernel "$guest_kernel" \
        -initrd "$TEST_TMP/$name.cpio" -append "$guest_append" "$@" \
        <"${guest_stdin:-/dev/null}" >"$guest_console" 2>"$guest_console.stderr" &
    guest_pid=$!
}

# guest_expect REGEX: waits until a line of the console matches; fails if the guest ends first.
guest_expect()
{
    local running=1
    until guest_text | grep -qE "$1"; do
        ((running)) || guest_lost_to_emulator || fail "the guest ended without saying '$1'"
        running=1
        kill -0 "$guest_pid" 2>/dev/null || { running=0; continue; }
        sleep 0.1
    done
}

# Waits for the monitor to end by itself, with this status (0).
guest_wait()
{
    local status=0
    wait "$guest_pid" || status=$?
    guest_pid=''
    if guest_lost_to_emulator; then
        guest_wait "$@"
        return
    fi
    ((status == ${1:-0})) || fail "the monitor ended with status $status, not ${1:-0}"
}

# The script ran to its end without an error, powered the machine off, and no request failed.
guest_end()
{
    guest_wait 0
    guest_text | grep -qx 'guest: script ended with 0' || fail "the guest's script did not end with 0"
    ! guest_text | grep '^guest: kernel reports' || fail "the guest's kernel reports errors"
}

guest_boot()
{
    guest_start "$@"
    guest_end
}

guest_kill()
{
    local status=0
    kill -KILL "$guest_pid"
    wait "$guest_pid" 2>/dev/null || status=$?
    guest_pid=''
    # 137: it really was there to be killed.
    ((status == 137)) || fail "the monitor had ended by itself, with status $status"
}

# guest_value NAME: what the guest printed as `NAME=value`.
guest_value()
{
    guest_text | sed -n "s/^$1=//p" | tail -n 1
}
