#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# build.sh OUT.bin SOURCE_FOLDER: compiles the tiny guest and makes one kernel image of it. By meson; or by hand.
set -euo pipefail
out=$1
source=$2
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
compiler=${CC:-gcc}
for file in start.S lib interrupt pci virtio tests test_board test_acpi test_irq test_blk test_malformed; do
    [[ $file == *.S ]] || file=$file.c
    $compiler -std=gnu17 -O2 -g0 -Wall -Wextra -Wshadow -ffreestanding -fno-builtin -fno-pic -no-pie -fno-stack-protector \
        -fcf-protection=none -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -mno-red-zone \
        -mgeneral-regs-only -mcmodel=small -c "$source/$file" -o "$objects/${file%.*}.o"
done
ld -m elf_x86_64 -nostdlib -static --build-id=none -z noexecstack --no-warn-rwx-segments -T "$source/link.ld" -o "$objects/tiny.elf" "$objects"/*.o
objcopy -O binary -j .setup "$objects/tiny.elf" "$objects/setup.bin"
objcopy -O binary -j .image "$objects/tiny.elf" "$objects/image.bin"
cat "$objects/setup.bin" "$objects/image.bin" >"$out"
# syssize: 16-byte units after the setup sectors.
units=$((($(stat -c %s "$objects/image.bin") + 15) / 16))
printf "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $((units & 255)) $((units >> 8 & 255)) $((units >> 16 & 255)) 0)" |
    dd of="$out" bs=1 seek=$((0x1f4)) conv=notrunc status=none
