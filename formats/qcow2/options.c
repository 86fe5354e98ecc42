/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The options of an open image: their table, and taking them into its state. */
#include "options.h"

#include "driver.h"

#include <string.h>

#define DEFAULT_L2_CACHE "33554432"
#define DEFAULT_REFCOUNT_CACHE (8u << 20)
#define MIN_REFBLOCKS 4u
#define SLICE_BYTES 4096u

const struct opt_desc qcow2_options[] = {
    { .name = "lazy-refcounts", .type = OPT_BOOL, .flags = OPT_REOPEN, .help = "postpone refcount updates" },
    { .name = "pass-discard-request",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "pass guest discards on to the host (default: as discard=)" },
    { .name = "pass-discard-snapshot",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "give the host what changes of snapshots free (default: on)" },
    { .name = "pass-discard-other",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "give the host what is freed otherwise (default: off)" },
    { .name = "discard-no-unref",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "discarded and zeroed clusters keep their place in the image, so that it does not fragment" },
    { .name = "overlap-check",
      .type = OPT_STRING,
      .flags = OPT_REOPEN,
      .help = "which metadata is protected from being overwritten: none, constant, cached, all (default: cached)" },
    { .name = "overlap-check.template",
      .type = OPT_STRING,
      .flags = OPT_REOPEN,
      .help = "the same; the keys below change it" },
    { .name = "overlap-check.main-header", .type = OPT_BOOL, .flags = OPT_REOPEN, .help = "the header (constant)" },
    { .name = "overlap-check.active-l1",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "the active L1 table (constant)" },
    { .name = "overlap-check.active-l2", .type = OPT_BOOL, .flags = OPT_REOPEN, .help = "active L2 tables (cached)" },
    { .name = "overlap-check.refcount-table",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "the refcount table (constant)" },
    { .name = "overlap-check.refcount-block",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "refcount blocks (cached)" },
    { .name = "overlap-check.snapshot-table",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "the table of snapshots (constant)" },
    { .name = "overlap-check.inactive-l1",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "L1 tables of snapshots (cached)" },
    { .name = "overlap-check.inactive-l2",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "L2 tables of snapshots (all)" },
    { .name = "overlap-check.bitmap-directory",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "the directory of bitmaps (constant)" },
    { .name = "cache-size",
      .type = OPT_SIZE,
      .flags = OPT_REOPEN,
      .help = "largest memory for L2 tables and refcount blocks together" },
    { .name = "l2-cache-size",
      .type = OPT_SIZE,
      .flags = OPT_REOPEN,
      .def = DEFAULT_L2_CACHE,
      .help = "largest memory for L2 tables" },
    { .name = "l2-cache-entry-size",
      .type = OPT_SIZE,
      .flags = OPT_REOPEN,
      .help = "bytes of an L2 table that are loaded at once" },
    { .name = "cache-clean-interval",
      .type = OPT_NUMBER,
      .flags = OPT_REOPEN,
      .def = "600",
      .help = "seconds after which what nobody used leaves these caches; 0 for never" },
    { .name = "refcount-cache-size",
      .type = OPT_SIZE,
      .flags = OPT_REOPEN,
      .help = "largest memory for refcount blocks" },
    { 0 },
};

/* ---- caches ---- */

static int take_sizes(struct qcow2 *s, struct opts *opts, struct error **errp)
{
    uint64_t l2 = 0, total = 0, refcount = DEFAULT_REFCOUNT_CACHE, slice = MIN((uint64_t)SLICE_BYTES, s->cluster_size);
    int have_total = opts_size(opts, qcow2_options, "cache-size", &total, errp);
    int have_l2 = have_total < 0 ? have_total : opts_size(opts, qcow2_options, "l2-cache-size", &l2, errp);
    int have_refcount = have_l2 < 0 ? have_l2 : opts_size(opts, qcow2_options, "refcount-cache-size", &refcount, errp);
    int have_slice = have_refcount < 0 ? have_refcount
                                       : opts_size(opts, qcow2_options, "l2-cache-entry-size", &slice, errp);

    if (have_slice < 0)
        return have_slice;
    if (have_total && have_l2 && have_refcount)
        return error_set(errp, -EINVAL,
                         "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
    if (have_total && have_l2 && l2 > total)
        return error_set(errp, -EINVAL, "l2-cache-size may not exceed cache-size");
    if (have_total && have_refcount && refcount > total)
        return error_set(errp, -EINVAL, "refcount-cache-size may not exceed cache-size");
    if (!is_power_of_two(slice) || slice < 512 || slice > s->cluster_size)
        return error_set(errp, -EINVAL,
                         "L2 cache entry size must be a power of two between 512 and the cluster size (%" PRIu64 ")",
                         s->cluster_size);
    if (have_total && have_l2)
        refcount = total - l2;
    else if (have_total)
        l2 = have_refcount ? total - refcount : total - total / 8;
    s->slice_bits = log2_floor(slice) - qcow2_entry_shift(s->header.incompatible & QCOW2_INCOMPAT_EXTENDED_L2);
    s->max_slices = (size_t)MAX(l2 / slice, UINT64_C(8));
    s->max_refblocks = (size_t)MAX(refcount / s->cluster_size, MIN_REFBLOCKS);
    return 0;
}

static int take_clean_interval(struct qcow2 *s, struct opts *opts, struct error **errp)
{
    int ret = opts_number(opts, qcow2_options, "cache-clean-interval", &s->clean_interval, errp);

    if (ret >= 0 && s->clean_interval > UINT32_MAX)
        return error_set(errp, -EINVAL, "Cache clean interval too big");
    return ret < 0 ? ret : 0;
}

/* ---- protected metadata ---- */

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
static int take_overlap_check(struct qcow2 *s, struct opts *opts, struct error **errp)
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

/* ---- discards ---- */

static int take_discard(struct qcow2 *s, struct opts *opts, unsigned flags, struct error **errp)
{
    static const char *const names[QCOW2_FREED_BY_COUNT] = {
        [QCOW2_FREED_BY_REQUEST] = "pass-discard-request",
        [QCOW2_FREED_BY_SNAPSHOT] = "pass-discard-snapshot",
        [QCOW2_FREED_BY_OTHER] = "pass-discard-other",
    };
    int ret = 0;

    s->pass_discard[QCOW2_FREED_BY_REQUEST] = flags & BLK_O_UNMAP;
    s->pass_discard[QCOW2_FREED_BY_SNAPSHOT] = true;
    for (size_t i = 0; i < ARRAY_SIZE(names) && ret >= 0; i++)
        ret = opts_bool(opts, qcow2_options, names[i], &s->pass_discard[i], errp);
    if (ret >= 0)
        ret = opts_bool(opts, qcow2_options, "discard-no-unref", &s->discard_keeps_place, errp);
    if (ret >= 0 && s->discard_keeps_place && s->header.version < 3)
        return error_set(errp, -EINVAL,
                         "discard-no-unref requires a qcow2 image with at least qemu 1.1 compatibility level");
    return ret < 0 ? ret : 0;
}

/* ---- all ---- */

int qcow2_options_take(struct qcow2 *s, struct opts *opts, unsigned flags, struct error **errp)
{
    int ret = take_sizes(s, opts, errp);

    s->lazy_refcounts = s->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    if (ret >= 0)
        ret = opts_bool(opts, qcow2_options, "lazy-refcounts", &s->lazy_refcounts, errp);
    if (ret >= 0)
        ret = take_discard(s, opts, flags, errp);
    if (ret >= 0)
        ret = take_overlap_check(s, opts, errp);
    if (ret >= 0)
        ret = take_clean_interval(s, opts, errp);
    if (ret < 0)
        return ret;
    if (s->lazy_refcounts && s->header.version < 3)
        return error_set(errp, -EINVAL,
                         "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
    return 0;
}
