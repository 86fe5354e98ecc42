/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which metadata is protected from being overwritten: the options overlap-check and overlap-check.*, and what has to be
 * read for them. corrupt.c does the checks.
 *
 * The L2 tables of snapshots are read at open, where `inactive-l2` is on and the image is written: what a check has to
 * know is in memory, as for all other kinds. They change only together with the list of snapshots.
 */
#include "qcow2.h"

#include <string.h>

static const struct {
    const char *key;
    unsigned region;
} keys[] = {
    { "overlap-check.main-header", QCOW2_REGION_HEADER },
    { "overlap-check.active-l1", QCOW2_REGION_L1 },
    { "overlap-check.active-l2", QCOW2_REGION_L2 },
    { "overlap-check.refcount-table", QCOW2_REGION_REFTABLE },
    { "overlap-check.refcount-block", QCOW2_REGION_REFBLOCK },
    { "overlap-check.snapshot-table", QCOW2_REGION_SNAPSHOTS },
    { "overlap-check.inactive-l1", QCOW2_REGION_INACTIVE_L1 },
    { "overlap-check.inactive-l2", QCOW2_REGION_INACTIVE_L2 },
    { "overlap-check.bitmap-directory", QCOW2_REGION_BITMAPS },
};

static int template_of(const char *word, unsigned *regions, struct error **errp)
{
    static const struct {
        const char *word;
        unsigned regions;
    } templates[] = {
        { "none", 0 },
        { "constant", QCOW2_OVERLAP_CONSTANT },
        { "cached", QCOW2_OVERLAP_CACHED },
        { "all", QCOW2_OVERLAP_ALL },
    };

    for (size_t i = 0; i < ARRAY_SIZE(templates); i++) {
        if (strcmp(templates[i].word, word) == 0) {
            *regions = templates[i].regions;
            return 0;
        }
    }
    return error_set(errp, -EINVAL,
                     "Unsupported value '%s' for qcow2 option 'overlap-check'. Allowed are any of the following: "
                     "none, constant, cached, all",
                     word);
}

/* Two names of the same option, so that it can stand beside the keys of single kinds. */
int qcow2_overlap_options(struct qcow2 *s, struct opts *opts, struct error **errp)
{
    const char *word = "cached", *template = NULL;
    int given = opts_string(opts, qcow2_options, "overlap-check", &word, errp);
    int ret = given < 0 ? given : opts_string(opts, qcow2_options, "overlap-check.template", &template, errp);

    if (ret < 0)
        return ret;
    if (given && template && strcmp(word, template) != 0)
        return error_set(errp, -EINVAL,
                         "Conflicting values for qcow2 options 'overlap-check' ('%s') and 'overlap-check.template' "
                         "('%s')",
                         word, template);
    ret = template_of(template ? template : word, &s->overlap_check, errp);
    for (size_t i = 0; ret >= 0 && i < ARRAY_SIZE(keys); i++) {
        bool on = s->overlap_check & keys[i].region;
        ret = opts_bool(opts, qcow2_options, keys[i].key, &on, errp);
        s->overlap_check = on ? s->overlap_check | keys[i].region : s->overlap_check & ~keys[i].region;
    }
    return ret < 0 ? ret : 0;
}

static coroutine_fn int co_read_one(struct qcow2 *s, const struct qcow2_snapshot *snapshot)
{
    uint64_t bytes = (uint64_t)snapshot->l1_size * 8;
    AUTO_FREE uint8_t *l1 = malloc(bytes + 1);
    int ret = !l1 ? -ENOMEM : bytes ? blk_co_read(s->node->file, snapshot->l1_offset, l1, bytes) : 0;

    for (uint64_t i = 0; ret == 0 && i < snapshot->l1_size; i++) {
        uint64_t table = load_be64(l1 + i * 8) & QCOW2_OFFSET_MASK;
        if (table && qcow2_in_cluster(s, table) == 0)
            ret = qcow2_set_add(&s->inactive_l2_set, table >> s->cluster_bits);
    }
    return ret;
}

coroutine_fn int qcow2_co_overlap_read(struct qcow2 *s, struct error **errp)
{
    int ret = 0;

    qcow2_set_finish(&s->inactive_l2_set);
    if (!(s->overlap_check & QCOW2_REGION_INACTIVE_L2) || !blk_node_writable(s->node))
        return 0;
    for (uint32_t i = 0; i < s->header.snapshot_count && ret == 0; i++) {
        if (qcow2_snapshot_l1_valid(s, &s->snapshots[i]))
            ret = co_read_one(s, &s->snapshots[i]);
    }
    return ret < 0 ? error_set_errno(errp, ret, "Could not read the L1 tables of snapshots") : 0;
}
