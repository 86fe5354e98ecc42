/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A set of host clusters: open addressing, 0 is empty (cluster 0 is the header, which needs no set). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qcow2_set {
    uint64_t *slots;
    size_t count, capacity;
};

int qcow2_set_add(struct qcow2_set *set, uint64_t cluster); /* 0 or -ENOMEM */
void qcow2_set_remove(struct qcow2_set *set, uint64_t cluster);
bool qcow2_set_has(const struct qcow2_set *set, uint64_t cluster);
void qcow2_set_finish(struct qcow2_set *set);
