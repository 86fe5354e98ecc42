/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* -l, parsed and done. */
#include "snapshot_arg.h"

#include <base/error.h>
#include <base/opts.h>
#include <block/snapshot.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool snapshot_arg_given(const struct snapshot_arg *arg) { return arg->any || arg->id || arg->name; }

void snapshot_arg_finish(struct snapshot_arg *arg)
{
    free(arg->any);
    free(arg->id);
    free(arg->name);
    *arg = (struct snapshot_arg){ 0 };
}

/* Of several of a kind the last counts, and options before a plain one, as in qemu-img. */
bool snapshot_arg_parse(struct snapshot_arg *arg, const char *text)
{
    static const struct opt_desc table[] = { { "snapshot.id", OPT_STRING, NULL, "The id of the snapshot", NULL, 0 },
                                             { "snapshot.name", OPT_STRING, NULL, "Its name", NULL, 0 },
                                             { NULL, OPT_STRING, NULL, NULL, NULL, 0 } };
    struct error *error = NULL;
    struct opts *opts = opts_new();
    int ret = 0;

    if (strncmp(text, "snapshot.", strlen("snapshot.")) != 0) {
        free(arg->any);
        arg->any = xstrdup(text);
    } else {
        ret = opts_parse(opts, text, NULL, OPTS_LAST_WINS, &error);
        if (ret == 0)
            ret = opts_validate(opts, table, &error);
        free(arg->id);
        free(arg->name);
        arg->id = opts_take(opts, "snapshot.id");
        arg->name = opts_take(opts, "snapshot.name");
    }
    opts_free(opts);
    if (ret == 0)
        return true;
    error_report_free(error);
    error_report("Failed in parsing snapshot param '%s'", text);
    return false;
}

static coroutine_fn int co_show(const struct snapshot_arg *arg, struct blk_node *node, struct error **errp)
{
    struct error *error = NULL;

    if (arg->id || arg->name)
        return blk_co_snapshot_show(node, arg->id, arg->name, errp);
    int ret = blk_co_snapshot_show(node, arg->any, NULL, &error);
    if (ret != -ENOENT) {
        error_propagate(errp, error);
        return ret;
    }
    error_free(error);
    return blk_co_snapshot_show(node, NULL, arg->any, errp);
}

coroutine_fn int snapshot_arg_co_show(const struct snapshot_arg *arg, struct blk_front *source)
{
    struct blk_node *node = blk_front_node(source);
    struct error *error = NULL;
    int ret = snapshot_arg_given(arg) ? co_show(arg, node, &error) : 0;

    if (ret == -ENOTSUP) {
        error_free(error);
        error = NULL;
        error_set(&error, ret,
                  "Block format '%s' used by device '' does not support temporarily loading internal snapshots",
                  blk_node_below_filters(node)->driver->name);
    }
    if (ret == 0)
        return 0;
    error_prepend(&error, "Failed to load snapshot: ");
    error_report_free(error);
    return -1;
}
