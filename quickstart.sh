#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# From a fresh clone on Debian 12 to a guest on a qcow2 disk: installs what is missing, builds, boots Debian's kernel twice
# on an image that img-tool made, and shows that what the first boot wrote is there in the second.
#
#   ./quickstart.sh            the whole demonstration
#   ./quickstart.sh --shell    a shell in the guest instead (Ctrl-A X ends the machine, poweroff -f the guest)
#
# VMM=qemu-system-x86_64 IMG_TOOL=qemu-img ./quickstart.sh does the same with QEMU, for comparison; nothing is built then.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
self=$PWD/quickstart.sh

say()
{
    printf '\n==> %s\n' "$*"
}

die()
{
    printf 'quickstart: %s\n' "$*" >&2
    exit 1
}

# A command as a person would type it.
show()
{
    local word line='    $'
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:,=@%+-]+$ ]] || word="'$word'"
        line+=" $word"
    done
    printf '%s\n' "$line"
}

# ---- inside the machine that has a hardware-backed KVM: this one, or the test bed ----

# boot INITRD OPTION...: runs the monitor on the console.
boot()
{
    local initrd=$1 command
    shift
    command=("$VMM" -machine q35 -cpu host -m 512M -kernel "$QS_KERNEL" -initrd "$initrd" -append "console=ttyS0 quiet panic=-1")
    case $VMM in
    *qemu-system-x86_64) command+=(-accel kvm -nic none) ;;
    esac
    command+=(-no-reboot -nographic "$@")
    show "${command[@]}"
    if [[ -t 0 ]]; then
        "${command[@]}"
    else
        "${command[@]}" </dev/null
    fi
}

# check_boot CONSOLE: its script ended well, and the kernel had nothing to complain of.
check_boot()
{
    tr -d '\r' <"$1" >"$1.text"
    ! grep '^guest: kernel reports' "$1.text" || die "the guest's kernel reports errors"
    grep -qx 'guest: script ended with 0' "$1.text" || die "the guest did not finish its script"
}

demonstrate()
{
    cd "$BED_SCRATCH"
    say "An image: 4 GiB for the guest, a few KiB on the host until it is written"
    show "$IMG_TOOL" create -f qcow2 x.qcow2 4G
    "$IMG_TOOL" create -f qcow2 x.qcow2 4G
    if [[ $QS_SHELL == 1 ]]; then
        say "A shell in the guest; its disk is /dev/vda. Ctrl-A X ends the machine."
        boot "$QS_INITRDS/shell.cpio" -drive file=x.qcow2,if=virtio,cache=none
    else
        say "First boot: makes an ext4 file system, writes files and their checksums, syncs, powers off"
        boot "$QS_INITRDS/write.cpio" -drive file=x.qcow2,if=virtio,cache=none | tee write.console
        check_boot write.console
        say "Second boot: a new machine on the same image reads everything back"
        boot "$QS_INITRDS/verify.cpio" -drive file=x.qcow2,if=virtio,cache=none | tee verify.console
        check_boot verify.console
        local written found
        written=$(sed -n 's/^.*checksum of all files: //p' write.console.text)
        found=$(sed -n 's/^.*checksum of all files: //p' verify.console.text)
        [[ $written && $written == "$found" ]] || die "written: '$written', found: '$found'"
    fi
    say "The image is checked"
    show "$IMG_TOOL" check x.qcow2
    "$IMG_TOOL" check x.qcow2
}

# ---- outside ----

guest_scripts()
{
    cat >"$1/write.sh" <<'END'
echo "guest: kernel $(uname -r) on $(nproc) processor(s), /dev/vda of $(($(cat /sys/block/vda/size) / 2048)) MiB"
mke2fs -q -t ext4 /dev/vda
mount /dev/vda /mnt
for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/random-$i bs=64k count=32 2>/dev/null; done
cp -a /bin /modules /mnt/
cd /mnt
find . -type f ! -name sums | sort | xargs md5sum >sums
echo "guest: wrote $(wc -l <sums) files, $(du -sm . | cut -f1) MiB; checksum of all files: $(md5sum <sums | cut -c 1-32)"
cd /
sync
umount /mnt
END
    cat >"$1/verify.sh" <<'END'
e2fsck -fn /dev/vda >/dev/null
mount /dev/vda /mnt
cd /mnt
md5sum -c -s sums
echo "guest: read $(wc -l <sums) files, all as written; checksum of all files: $(md5sum <sums | cut -c 1-32)"
cd /
umount /mnt
END
    cat >"$1/shell.sh" <<'END'
echo "Busybox in the guest. The disk is /dev/vda: mke2fs -t ext4 /dev/vda; mount /dev/vda /mnt"
set +e
setsid cttyhack sh </dev/ttyS0 >/dev/ttyS0 2>&1
true
END
}

main()
{
    local shell=0 options=()
    case ${1-} in
    '') ;;
    --shell) shell=1 ;;
    -h | --help) sed -n '3,/^set -/s/^# \{0,1\}//p' "$self"; exit ;;
    *) die "unknown option '$1' (--shell, --help)" ;;
    esac

    say "Debian packages"
    tests/install build guest
    echo "    all there"

    if [[ ${VMM-} && ${IMG_TOOL-} ]]; then
        say "Using $VMM and $IMG_TOOL as asked; nothing is built"
    else
        say "Building in build/release"
        [[ -e build/release/build.ninja ]] || meson setup build/release --buildtype=debugoptimized >/dev/null ||
            die "meson failed: see build/release/meson-logs/meson-log.txt"
        ninja -C build/release --quiet
        VMM=${VMM-$PWD/build/release/vmm/vmm}
        IMG_TOOL=${IMG_TOOL-$PWD/build/release/img-tool/img-tool}
        echo "    $VMM"
        echo "    $IMG_TOOL"
    fi
    export VMM IMG_TOOL

    say "Debian's kernel and an initrd"
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/vmm-quickstart.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    QS_KERNEL=$(tests/bed/bed vmlinuz cloud)
    guest_scripts "$work"
    for name in write verify shell; do
        tests/bed/mkguest -k cloud "$work/$name.cpio" "$work/$name.sh"
    done
    echo "    $QS_KERNEL"
    export QS_KERNEL QS_INITRDS=$work QS_SHELL=$shell

    if tests/bed/bed hardware; then
        say "This machine's KVM is backed by hardware"
    else
        say "This machine's KVM is not backed by hardware (no vmx or svm, or no /dev/kvm that may be written): the same is done
    inside the test bed, a machine emulated by QEMU that has it. All is many times slower there."
        ((!shell)) || options+=(--timeout 86400)
    fi
    if ! tests/bed/bed run "${options[@]}" -- "$self" --inside; then
        die "it did not work; the lines above say where"
    fi
    ((shell)) ||
        say "Success: a Debian guest wrote to a qcow2 disk with cache=none, found its data after a new boot, and the image is clean."
}

if [[ ${1-} == --inside ]]; then
    demonstrate
else
    main "$@"
fi
