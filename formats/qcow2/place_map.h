/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where things have moved: from one offset in the file to another. Open addressing; offset 0 is the empty slot. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qcow2_place {
    uint64_t from, to;
};

struct qcow2_place_map {
    struct qcow2_place *slots;
    size_t count, capacity;
};

int qcow2_place_add(struct qcow2_place_map *map, uint64_t from, uint64_t to); /* 0 or -ENOMEM */
/* 0: it has not moved. */
uint64_t qcow2_place_of(const struct qcow2_place_map *map, uint64_t from);
void qcow2_place_finish(struct qcow2_place_map *map);
