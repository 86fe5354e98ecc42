/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sets of host clusters: linear probing, at most half full. */
#include "set.h"

#include <errno.h>
#include <stdlib.h>

static size_t slot_of(const struct qcow2_set *set, uint64_t cluster)
{
    return (size_t)((cluster * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (set->capacity - 1);
}

static int grow(struct qcow2_set *set)
{
    struct qcow2_set bigger = { .capacity = set->capacity ? set->capacity * 2 : 64 };

    bigger.slots = calloc(bigger.capacity, sizeof(*bigger.slots));
    if (!bigger.slots)
        return -ENOMEM;
    for (size_t i = 0; i < set->capacity; i++) {
        if (set->slots[i])
            qcow2_set_add(&bigger, set->slots[i]);
    }
    free(set->slots);
    *set = bigger;
    return 0;
}

int qcow2_set_add(struct qcow2_set *set, uint64_t cluster)
{
    if (cluster == 0)
        return 0;
    if (set->count * 2 >= set->capacity && grow(set) < 0)
        return -ENOMEM;
    size_t i = slot_of(set, cluster);
    while (set->slots[i] && set->slots[i] != cluster)
        i = (i + 1) & (set->capacity - 1);
    set->count += set->slots[i] == 0;
    set->slots[i] = cluster;
    return 0;
}

bool qcow2_set_has(const struct qcow2_set *set, uint64_t cluster)
{
    if (set->count == 0 || cluster == 0)
        return false;
    size_t i = slot_of(set, cluster);
    while (set->slots[i] && set->slots[i] != cluster)
        i = (i + 1) & (set->capacity - 1);
    return set->slots[i] == cluster;
}

/* Takes the entry out and moves up those that had been pushed past it. */
void qcow2_set_remove(struct qcow2_set *set, uint64_t cluster)
{
    if (!qcow2_set_has(set, cluster))
        return;
    size_t mask = set->capacity - 1, hole = slot_of(set, cluster);
    while (set->slots[hole] != cluster)
        hole = (hole + 1) & mask;
    for (size_t i = (hole + 1) & mask; set->slots[i]; i = (i + 1) & mask) {
        size_t home = slot_of(set, set->slots[i]);
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            set->slots[hole] = set->slots[i];
            hole = i;
        }
    }
    set->slots[hole] = 0;
    set->count--;
}

void qcow2_set_finish(struct qcow2_set *set)
{
    free(set->slots);
    *set = (struct qcow2_set){ 0 };
}
