/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where things have moved: linear probing, at most half full. */
#include "place_map.h"

#include <errno.h>
#include <stdlib.h>

/* The slot that has `from`, or the empty one where it goes. */
static struct qcow2_place *find(const struct qcow2_place_map *map, uint64_t from)
{
    size_t at = (size_t)((from * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (map->capacity - 1);

    while (map->slots[at].from && map->slots[at].from != from)
        at = (at + 1) & (map->capacity - 1);
    return &map->slots[at];
}

static int grow(struct qcow2_place_map *map)
{
    struct qcow2_place_map larger = { .count = map->count, .capacity = map->capacity ? map->capacity * 2 : 64 };

    larger.slots = calloc(larger.capacity, sizeof(*larger.slots));
    if (!larger.slots)
        return -ENOMEM;
    for (size_t i = 0; i < map->capacity; i++) {
        if (map->slots[i].from)
            *find(&larger, map->slots[i].from) = map->slots[i];
    }
    free(map->slots);
    *map = larger;
    return 0;
}

int qcow2_place_add(struct qcow2_place_map *map, uint64_t from, uint64_t to)
{
    if (map->count * 2 >= map->capacity && grow(map) < 0)
        return -ENOMEM;
    struct qcow2_place *place = find(map, from);
    map->count += place->from == 0;
    *place = (struct qcow2_place){ from, to };
    return 0;
}

uint64_t qcow2_place_of(const struct qcow2_place_map *map, uint64_t from)
{
    return map->capacity ? find(map, from)->to : 0;
}

void qcow2_place_finish(struct qcow2_place_map *map)
{
    free(map->slots);
    *map = (struct qcow2_place_map){ 0 };
}
