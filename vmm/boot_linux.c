/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Direct boot of a Linux kernel (bzImage), as Documentation/arch/x86/boot.rst has it: the header is checked, the
 * protected-mode part goes to the address it wants, the initrd as high as the kernel allows, the zero page gets the
 * memory map. The kernel is entered at its 64-bit entry point if it has one, else at the 32-bit one.
 * Invariant: no number of the file is used as an address or length before it was checked against the file and guest
 * memory.
 */
#include "boot.h"

#include "cmdline.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Offsets in the file's first sectors, which are those in the zero page. */
enum {
    HDR_SETUP_SECTS = 0x1f1,
    HDR_BOOT_FLAG = 0x1fe,
    HDR_JUMP_LENGTH = 0x201,
    HDR_MAGIC = 0x202,
    HDR_VERSION = 0x206,
    HDR_TYPE_OF_LOADER = 0x210,
    HDR_LOADFLAGS = 0x211,
    HDR_RAMDISK_IMAGE = 0x218,
    HDR_RAMDISK_SIZE = 0x21c,
    HDR_CMD_LINE_PTR = 0x228,
    HDR_INITRD_ADDR_MAX = 0x22c,
    HDR_KERNEL_ALIGNMENT = 0x230,
    HDR_RELOCATABLE = 0x234,
    HDR_XLOADFLAGS = 0x236,
    HDR_CMDLINE_SIZE = 0x238,
    HDR_PREF_ADDRESS = 0x258,
    HDR_INIT_SIZE = 0x260,
    ZP_ACPI_RSDP = 0x070,
    ZP_E820_ENTRIES = 0x1e8,
    ZP_SETUP_HEADER = 0x1f1,
    ZP_E820_TABLE = 0x2d0,
    ZERO_PAGE_SIZE = 4096,
};
#define KERNEL_LOAD_ADDRESS 0x100000u
#define LOADED_HIGH 1u
#define CAN_USE_HEAP 0x80u
#define XLF_KERNEL_64 1u
#define MINIMUM_VERSION 0x206u /* cmdline_size */

#define E820_RAM 1u
#define E820_RESERVED 2u
#define E820_ACPI 3u

struct kernel_file {
    int fd;
    uint64_t size;
    uint8_t head[ZERO_PAGE_SIZE]; /* the file's start */
    uint64_t load_offset;         /* of the protected-mode part in the file */
    uint16_t version;
};

static int read_fully(int fd, void *buffer, uint64_t length, uint64_t offset)
{
    uint8_t *at = buffer;
    while (length) {
        ssize_t got = pread(fd, at, MIN(length, 1ull << 30), (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        at += got;
        offset += (uint64_t)got;
        length -= (uint64_t)got;
    }
    return 0;
}

/* Stays open for all resets to come, by which time others may have replaced or removed what the path names. */
static int open_file(struct boot_file *file, const char *path, const char *what, struct error **errp)
{
    struct stat st;

    if (file->open)
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        int err = error_set_errno(errp, -errno, "could not open %s file '%s'", what, path);
        if (fd >= 0)
            close(fd);
        return err;
    }
    *file = (struct boot_file){ .open = true, .fd = fd, .size = (uint64_t)st.st_size };
    return 0;
}

static void close_file(struct boot_file *file)
{
    if (file->open)
        close(file->fd);
    *file = (struct boot_file){ 0 };
}

void boot_linux_finish(struct machine *machine)
{
    close_file(&machine->kernel_file);
    close_file(&machine->initrd_file);
}

static int check_header(struct kernel_file *file, const char *path, struct error **errp)
{
    const uint8_t *head = file->head;
    if (load_le16(head + HDR_BOOT_FLAG) != 0xaa55 || memcmp(head + HDR_MAGIC, "HdrS", 4) != 0)
        return error_set(errp, -EINVAL, "invalid kernel header in '%s': not a Linux bzImage", path);
    file->version = load_le16(head + HDR_VERSION);
    if (file->version < MINIMUM_VERSION || !(head[HDR_LOADFLAGS] & LOADED_HIGH))
        return error_set(errp, -EINVAL, "kernel '%s' has boot protocol %u.%02u; at least 2.06 and a bzImage are needed",
                         path, file->version >> 8, file->version & 0xffu);
    unsigned sectors = head[HDR_SETUP_SECTS] ? head[HDR_SETUP_SECTS] : 4;
    file->load_offset = (sectors + 1u) * 512u;
    if (file->load_offset >= file->size)
        return error_set(errp, -EINVAL, "kernel '%s' is cut off: setup_sects %u go past its end", path, sectors);
    return 0;
}

/* Where the kernel will run: it moves itself to pref_address if it was loaded below that (boot protocol 2.10). */
static uint64_t runtime_start(const struct kernel_file *file)
{
    if (file->version < 0x20a)
        return KERNEL_LOAD_ADDRESS;
    uint64_t preferred = load_le64(file->head + HDR_PREF_ADDRESS);
    return file->head[HDR_RELOCATABLE] ? MAX(preferred, KERNEL_LOAD_ADDRESS) : preferred;
}

/* How much it needs there: init_size from protocol 2.10 on. */
static uint64_t runtime_size(const struct kernel_file *file)
{
    uint64_t length = file->size - file->load_offset;
    return file->version < 0x20a ? length : MAX(length, (uint64_t)load_le32(file->head + HDR_INIT_SIZE));
}

static int check_room(const struct machine *machine, const struct kernel_file *file, struct error **errp)
{
    uint64_t room = runtime_size(file), start = runtime_start(file);
    if (!memory_at(&machine->memory, start, room) || !memory_at(&machine->memory, KERNEL_LOAD_ADDRESS, room))
        return error_set(errp, -ENOMEM, "the guest has too little memory for the kernel: it needs %llu KiB from 0x%llx",
                         (unsigned long long)(room >> 10), (unsigned long long)start);
    return 0;
}

static int load_kernel(struct machine *machine, struct kernel_file *file, const char *path, struct error **errp)
{
    memset(file->head, 0, sizeof(file->head));
    int err = read_fully(file->fd, file->head, MIN(file->size, sizeof(file->head)), 0);
    if (err)
        return error_set_errno(errp, err, "could not read kernel file '%s'", path);
    err = check_header(file, path, errp);
    if (err)
        return err;
    uint64_t length = file->size - file->load_offset;
    err = check_room(machine, file, errp);
    if (err)
        return err;
    err = read_fully(file->fd, memory_at(&machine->memory, KERNEL_LOAD_ADDRESS, length), length, file->load_offset);
    if (err)
        return error_set_errno(errp, err, "could not read kernel file '%s'", path);
    machine->entry_32bit = !(file->version >= 0x20c && load_le16(file->head + HDR_XLOADFLAGS) & XLF_KERNEL_64);
    machine->entry = machine->entry_32bit ? KERNEL_LOAD_ADDRESS : KERNEL_LOAD_ADDRESS + 0x200;
    return 0;
}

static int load_initrd(struct machine *machine, const struct kernel_file *file, const char *path, uint8_t *zero_page,
                       struct error **errp)
{
    int err = open_file(&machine->initrd_file, path, "initrd", errp);
    if (err)
        return err;
    uint64_t size = machine->initrd_file.size;
    uint64_t end = (uint64_t)load_le32(file->head + HDR_INITRD_ADDR_MAX) + 1;
    end = align_down(MIN(end, machine->memory.blocks[0].size), 4096);
    /* Checked by check_room(): both are in memory. */
    uint64_t kernel_end = MAX(runtime_start(file), KERNEL_LOAD_ADDRESS) + runtime_size(file);
    if (size > end || align_down(end - size, 4096) < kernel_end) {
        err = error_set(errp, -ENOMEM, "the guest has too little memory for the initrd '%s' (%llu KiB)", path,
                        (unsigned long long)(size >> 10));
    } else if (size) {
        uint64_t at = align_down(end - size, 4096);
        err = read_fully(machine->initrd_file.fd, memory_at(&machine->memory, at, size), size, 0);
        if (err)
            error_set_errno(errp, err, "could not read initrd file '%s'", path);
        store_le32(zero_page + HDR_RAMDISK_IMAGE, (uint32_t)at);
        store_le32(zero_page + HDR_RAMDISK_SIZE, (uint32_t)size);
    }
    return err;
}

static void add_e820(uint8_t *zero_page, uint64_t start, uint64_t end, uint32_t type)
{
    uint8_t *entry = zero_page + ZP_E820_TABLE + zero_page[ZP_E820_ENTRIES]++ * 20u;
    store_le64(entry, start);
    store_le64(entry + 8, end - start);
    store_le32(entry + 16, type);
}

static void fill_e820(const struct machine *machine, uint8_t *zero_page)
{
    const struct guest_memory *memory = &machine->memory;
    add_e820(zero_page, 0, BOOT_LOW_END, E820_RAM);
    add_e820(zero_page, BOOT_LOW_END, 0xa0000, E820_RESERVED);
    add_e820(zero_page, BOOT_ACPI, BOOT_ACPI + BOOT_ACPI_ROOM, E820_ACPI);
    add_e820(zero_page, KERNEL_LOAD_ADDRESS, memory->blocks[0].size, E820_RAM);
    add_e820(zero_page, MEMORY_HOLE_START, MEMORY_HOLE_START + 0x10000000, E820_RESERVED); /* ECAM */
    if (memory->block_count > 1)
        add_e820(zero_page, memory->blocks[1].gpa, memory->blocks[1].gpa + memory->blocks[1].size, E820_RAM);
}

static int fill_zero_page(struct machine *machine, const struct kernel_file *file, uint8_t *zero_page,
                          struct error **errp)
{
    const struct config *config = machine->config;
    uint64_t header_end = MIN(0x202u + file->head[HDR_JUMP_LENGTH], 0x290u);
    memcpy(zero_page + ZP_SETUP_HEADER, file->head + ZP_SETUP_HEADER, header_end - ZP_SETUP_HEADER);
    zero_page[HDR_TYPE_OF_LOADER] = 0xff; /* no number of our own */
    zero_page[HDR_LOADFLAGS] &= (uint8_t)~CAN_USE_HEAP;
    store_le32(zero_page + HDR_RAMDISK_IMAGE, 0);
    store_le32(zero_page + HDR_RAMDISK_SIZE, 0);
    const char *text = config->append ? config->append : "";
    uint64_t length = strlen(text), limit = load_le32(file->head + HDR_CMDLINE_SIZE);
    if (length > limit || length >= BOOT_CMDLINE_ROOM)
        return error_set(errp, -E2BIG, "the kernel command line is too long: %llu characters, this kernel takes %llu",
                         (unsigned long long)length, (unsigned long long)limit);
    memory_copy_to(&machine->memory, BOOT_CMDLINE, text, length + 1);
    store_le32(zero_page + HDR_CMD_LINE_PTR, BOOT_CMDLINE);
    store_le64(zero_page + ZP_ACPI_RSDP, BOOT_ACPI);
    fill_e820(machine, zero_page);
    return 0;
}

/* A flat GDT and 4 GiB mapped one to one with 2 MiB pages: what the 64-bit boot protocol asks for. */
static void fill_cpu_tables(struct machine *machine)
{
    static const uint64_t gdt[BOOT_GDT_ENTRIES] = { 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
    static const uint64_t gdt_32bit[BOOT_GDT_ENTRIES] = { 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff };
    uint8_t *table = memory_at(&machine->memory, BOOT_GDT, sizeof(gdt));
    for (unsigned i = 0; i < BOOT_GDT_ENTRIES; i++)
        store_le64(table + i * 8, machine->entry_32bit ? gdt_32bit[i] : gdt[i]);
    uint8_t *pages = memory_at(&machine->memory, BOOT_PAGE_TABLES, 6 * 4096);
    memset(pages, 0, 6 * 4096);
    store_le64(pages, (BOOT_PAGE_TABLES + 4096) | 3);
    for (unsigned i = 0; i < 4; i++)
        store_le64(pages + 4096 + i * 8, (BOOT_PAGE_TABLES + (2 + i) * 4096) | 3);
    for (unsigned i = 0; i < 4 * 512; i++)
        store_le64(pages + 2 * 4096 + i * 8, ((uint64_t)i << 21) | 0x83);
}

int boot_linux_load(struct machine *machine, struct error **errp)
{
    const struct config *config = machine->config;
    if (!config->kernel) {
        error_set(errp, -EINVAL, "no kernel given: booting from a disk needs firmware, which vmm does not have yet");
        error_hint(errp, "add -kernel FILE and -initrd FILE");
        return -EINVAL;
    }
    if (!memory_at(&machine->memory, 0, KERNEL_LOAD_ADDRESS + 0x100000))
        return error_set(errp, -ENOMEM, "the guest has too little memory to boot a kernel: at least 2 MiB are needed");
    int err = open_file(&machine->kernel_file, config->kernel, "kernel", errp);
    if (err)
        return err;
    struct kernel_file file = { .fd = machine->kernel_file.fd, .size = machine->kernel_file.size };
    uint8_t *zero_page = memory_at(&machine->memory, BOOT_PARAMS, ZERO_PAGE_SIZE);
    memset(zero_page, 0, ZERO_PAGE_SIZE);
    err = load_kernel(machine, &file, config->kernel, errp);
    if (!err)
        err = fill_zero_page(machine, &file, zero_page, errp);
    if (!err && config->initrd)
        err = load_initrd(machine, &file, config->initrd, zero_page, errp);
    if (!err) {
        fill_cpu_tables(machine);
        machine->boot_params = BOOT_PARAMS;
        err = acpi_build(machine, errp);
    }
    return err;
}
