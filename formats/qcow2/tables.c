/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* All L2 tables of an image: those that several L1 tables name are gone through once. */
#include "tables.h"

struct each_table {
    struct qcow2 *s;
    const struct qcow2_checker *checker;
    uint64_t *seen; /* a bit a cluster */
    qcow2_co_table_fn *co_table;
    void *arg;
};

coroutine_fn int qcow2_co_each_tree(struct qcow2 *s, qcow2_co_tree_fn *co_tree, void *arg, struct error **errp)
{
    struct qcow2_tree tree;
    int ret = qcow2_tree_active(s, &tree);

    if (ret == 0) {
        ret = co_tree(arg, &tree, NULL);
        qcow2_tree_finish(&tree);
    }
    for (uint32_t i = 0; i < s->header.snapshot_count && ret == 0; i++) {
        ret = qcow2_co_tree_of_snapshot(s, &s->snapshots[i], &tree, errp);
        if (ret == 0)
            ret = co_tree(arg, &tree, &s->snapshots[i]);
        qcow2_tree_finish(&tree);
    }
    return ret;
}

/* The table that the L1 entry names; 0: none, or one that was gone through. (None lies past the end of the file: the
 * count of references would have said so.) */
static uint64_t next_table(struct each_table *t, uint64_t word)
{
    uint64_t offset = be64toh(word) & QCOW2_OFFSET_MASK, cluster = offset >> t->s->cluster_bits;

    if (offset == 0 || cluster >= t->checker->clusters || (t->seen[cluster / 64] >> cluster % 64 & 1))
        return 0;
    t->seen[cluster / 64] |= UINT64_C(1) << cluster % 64;
    return offset;
}

static coroutine_fn int co_tables_of(void *arg, struct qcow2_tree *tree, const struct qcow2_snapshot *sn)
{
    struct each_table *t = arg;
    int ret = 0;

    (void)sn;
    for (uint32_t i = 0; i < tree->l1_size && ret == 0; i++) {
        uint64_t offset = next_table(t, tree->l1[i]);
        if (offset)
            ret = t->co_table(t->arg, offset, qcow2_references(t->checker, offset >> t->s->cluster_bits));
    }
    return ret;
}

coroutine_fn int qcow2_co_each_table(struct qcow2 *s, const struct qcow2_checker *checker, qcow2_co_table_fn *co_table,
                                     void *arg, struct error **errp)
{
    AUTO_FREE uint64_t *seen = calloc(checker->clusters / 64 + 1, sizeof(*seen));
    struct each_table t = { s, checker, seen, co_table, arg };

    return seen ? qcow2_co_each_tree(s, co_tables_of, &t, errp) : -ENOMEM;
}
