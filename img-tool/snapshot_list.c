/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "snapshot_list.h"

#include <base/size.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

static int64_t member(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

void snapshot_list_print(const json_t *snapshots)
{
    size_t index;
    const json_t *snapshot;
    if (!snapshots || !json_array_size(snapshots))
        return;
    printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
    json_array_foreach(snapshots, index, snapshot)
    {
        char size[32], date[64], clock[64], icount[24] = "";
        time_t seconds = (time_t)member(snapshot, "date-sec");
        struct tm tm;
        localtime_r(&seconds, &tm);
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
        int64_t up = member(snapshot, "vm-clock-sec");
        snprintf(clock, sizeof(clock), "%02" PRId64 ":%02d:%02d.%03d", up / 3600, (int)(up / 60 % 60), (int)(up % 60),
                 (int)(member(snapshot, "vm-clock-nsec") / 1000000));
        if (json_object_get(snapshot, "icount"))
            snprintf(icount, sizeof(icount), "%" PRId64, member(snapshot, "icount"));
        printf("%-9s %-16s %8s%20s%13s%11s\n", json_string_value(json_object_get(snapshot, "id")),
               json_string_value(json_object_get(snapshot, "name")),
               size_format((uint64_t)member(snapshot, "vm-state-size"), size, sizeof(size)), date, clock, icount);
    }
}
