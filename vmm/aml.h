/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Writing ACPI Machine Language (ACPI 6.4, section 20) into a growing buffer: each aml_begin_…() is closed by
 * aml_end(). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct aml {
    uint8_t *data; /* owned; free() */
    size_t length, room;
    unsigned depth;
    struct {
        size_t length_at; /* where the package length goes */
        bool buffer;      /* a ResourceTemplate: also needs its size and end tag */
    } open[8];
};

void aml_bytes(struct aml *aml, const void *bytes, size_t count);
void aml_byte(struct aml *aml, uint8_t byte);
void aml_path(struct aml *aml, const char *path); /* one segment, or "\\_SB.PCI0" of two */
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
void aml_eisa_id(struct aml *aml, const char *id); /* "PNP0A08" */

void aml_name(struct aml *aml, const char *name); /* Name(name, …): the value follows */
void aml_begin_scope(struct aml *aml, const char *path);
void aml_begin_device(struct aml *aml, const char *name);
void aml_begin_package(struct aml *aml, uint8_t elements);
void aml_begin_resources(struct aml *aml); /* ResourceTemplate(); the aml_resource_…() follow */
void aml_end(struct aml *aml);

void aml_resource_io(struct aml *aml, uint16_t base, uint8_t length);
void aml_resource_irq(struct aml *aml, unsigned irq);
void aml_resource_bus_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_resource_io_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_resource_memory_window(struct aml *aml, uint64_t first, uint64_t last); /* 32 or 64 bits as needed */
