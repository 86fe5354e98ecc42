/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Opening nodes by name and options.
 *
 * One road for everybody: a file name or json:{} becomes flat options; common keys become BLK_O_ flags; without a
 * `driver` the protocol node is opened first and its content probed; then the driver opens the node, and what it did
 * not take from the options is refused by name. A failure at any step closes what the steps before opened.
 */
#include "drain.h"
#include "graph.h"
#include "open.h"
#include "perm.h"

#include <base/compiler.h>
#include <block/image.h>
#include <block/module.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* A chain longer than this is a mistake or an attack; each level costs stack. */
#define MAX_DEPTH 200

static const char *const discard_words[] = { "ignore", "off", "unmap", "on", NULL };
static const char *const detect_zeroes_words[] = { "off", "on", "unmap", NULL };

const struct opt_desc blk_node_options[] = {
    { .name = "driver", .type = OPT_STRING, .help = "format or protocol; probed where not given" },
    { .name = "node-name", .type = OPT_STRING, .help = "name of the node" },
    { .name = "read-only", .type = OPT_BOOL, .flags = OPT_REOPEN, .help = "open read-only" },
    { .name = "auto-read-only",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "open read-only where the image may not be written" },
    { .name = "discard",
      .type = OPT_ENUM,
      .values = discard_words,
      .flags = OPT_REOPEN,
      .help = "pass discards on to the host" },
    { .name = "detect-zeroes",
      .type = OPT_ENUM,
      .values = detect_zeroes_words,
      .flags = OPT_TERSE | OPT_REOPEN,
      .help = "turn writes of zeroes into holes" },
    { .name = "cache.direct",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "bypass the host's page cache (O_DIRECT)" },
    { .name = "cache.no-flush",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "ignore flushes: a power cut may lose everything" },
    { .name = "force-share", .type = OPT_BOOL, .help = "read although others write" },
    { 0 },
};

static const struct cache_mode {
    const char *name;
    unsigned flags;
    bool write_cache;
} cache_modes[] = {
    { "writeback", 0, true },
    { "none", BLK_O_DIRECT, true },
    { "off", BLK_O_DIRECT, true },
    { "writethrough", BLK_O_DSYNC, false },
    { "directsync", BLK_O_DIRECT | BLK_O_DSYNC, false },
    { "unsafe", BLK_O_NO_FLUSH, true },
};

int blk_cache_mode_parse(const char *mode, unsigned *flags, bool *write_cache)
{
    for (size_t i = 0; i < ARRAY_SIZE(cache_modes); i++) {
        if (strcmp(mode, cache_modes[i].name) == 0) {
            *flags = (*flags & ~(unsigned)(BLK_O_DIRECT | BLK_O_DSYNC | BLK_O_NO_FLUSH)) | cache_modes[i].flags;
            *write_cache = cache_modes[i].write_cache;
            return 0;
        }
    }
    return -EINVAL;
}

const char *blk_cache_mode_name(size_t index)
{
    return index < ARRAY_SIZE(cache_modes) ? cache_modes[index].name : NULL;
}

static int flag_option(struct opts *opts, const char *key, unsigned bit, bool inverse, unsigned *flags,
                       struct error **errp)
{
    bool on = false;
    int ret = opts_bool(opts, blk_node_options, key, &on, errp);

    if (ret > 0)
        *flags = on != inverse ? *flags | bit : *flags & ~bit;
    return ret < 0 ? ret : 0;
}

static int take_discard(struct opts *opts, unsigned *flags, struct error **errp)
{
    int word = 0;
    int ret = opts_enum(opts, blk_node_options, "discard", &word, NULL);

    if (ret < 0)
        return error_set(errp, ret, "Invalid discard option");
    if (ret > 0)
        *flags = word >= 2 ? *flags | BLK_O_UNMAP : *flags & ~(unsigned)BLK_O_UNMAP;
    return 0;
}

/* After discard, which unmap needs. */
static int take_detect_zeroes(struct opts *opts, unsigned *flags, struct error **errp)
{
    static const unsigned bits[] = { 0, BLK_O_DETECT_ZEROES, BLK_O_DETECT_UNMAP };
    int word = 0;
    int ret = opts_enum(opts, blk_node_options, "detect-zeroes", &word, errp);

    if (ret <= 0)
        return ret;
    if (word == 2 && !(*flags & BLK_O_UNMAP))
        return error_set(errp, -EINVAL,
                         "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap");
    *flags = (*flags & ~(unsigned)BLK_O_DETECT_MASK) | bits[word];
    return 0;
}

/* Common keys to BLK_O_ flags. */
int blk_take_flags(struct opts *opts, unsigned *flags, struct error **errp)
{
    int ret = flag_option(opts, "read-only", BLK_O_RDWR, true, flags, errp);

    if (ret == 0)
        ret = flag_option(opts, "auto-read-only", BLK_O_AUTO_RDONLY, false, flags, errp);
    if (ret == 0)
        ret = flag_option(opts, "cache.direct", BLK_O_DIRECT, false, flags, errp);
    if (ret == 0)
        ret = flag_option(opts, "cache.no-flush", BLK_O_NO_FLUSH, false, flags, errp);
    if (ret == 0)
        ret = flag_option(opts, "force-share", BLK_O_FORCE_SHARE, false, flags, errp);
    if (ret == 0)
        ret = take_discard(opts, flags, errp);
    if (ret == 0)
        ret = take_detect_zeroes(opts, flags, errp);
    if (ret == 0 && (*flags & (BLK_O_RDWR | BLK_O_FORCE_SHARE)) == (BLK_O_RDWR | BLK_O_FORCE_SHARE))
        return error_set(errp, -EINVAL, "force-share=on can only be used with read-only images");
    return ret;
}

/* "backing": null opens none, whatever the image says; so does "", which QEMU warns of. */
static void take_no_backing(struct opts *opts, unsigned *flags)
{
    const char *text = opts_text(opts, "backing");

    if (!text || *text)
        return;
    json_t *value = opts_json_value(opts, "backing");
    if (json_is_string(value))
        warn_report("Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
    json_decref(value);
    opts_del(opts, "backing");
    *flags |= BLK_O_NO_BACKING;
}

/* A name; a null says no more than nothing at all. */
static char *take_name(struct opts *opts, const char *key)
{
    json_t *value = opts_json_value(opts, key);
    bool null = json_is_null(value);

    json_decref(value);
    char *text = opts_take(opts, key);
    if (null) {
        free(text);
        text = NULL;
    }
    return text;
}

/* ---- which driver ---- */

struct best {
    const struct blk_driver *driver;
    const char *text;
    int score;
};

static void try_prefix(const struct blk_driver *driver, void *arg)
{
    struct best *best = arg;
    size_t length = strcspn(best->text, ":");

    for (const char *const *p = driver->protocol_prefixes; p && *p; p++) {
        if (strlen(*p) == length && strncmp(*p, best->text, length) == 0)
            best->driver = driver;
    }
}

static void try_path(const struct blk_driver *driver, void *arg)
{
    struct best *best = arg;
    int score = driver->probe_path ? driver->probe_path(best->text) : 0;

    if (score > best->score) {
        best->score = score;
        best->driver = driver;
    }
}

static const struct blk_driver *protocol_for_path(const char *path, struct error **errp)
{
    struct best best = { .text = path };

    blk_driver_each(try_path, &best);
    if (!best.driver)
        error_set(errp, -ENOENT, "No driver for file names");
    return best.driver;
}

const struct blk_driver *blk_protocol_for(const char *filename, struct error **errp)
{
    struct best best = { .text = filename };

    if (!blk_path_has_protocol(filename))
        return protocol_for_path(filename, errp);
    AUTO_FREE char *prefix = strndup(filename, strcspn(filename, ":"));
    if (blk_module_load(NULL, prefix, errp) < 0)
        return NULL;
    blk_driver_each(try_prefix, &best);
    if (!best.driver)
        error_set(errp, -EINVAL, "Unknown protocol '%.*s'", (int)strcspn(filename, ":"), filename);
    return best.driver;
}

/* What a node without `driver` is opened by: its name says so or, as the option filename=, is a path as it stands. */
static const struct blk_driver *find_protocol(const char *filename, const struct opts *opts, struct error **errp)
{
    if (filename)
        return blk_protocol_for(filename, errp);
    const char *path = opts_text(opts, "filename");
    if (!path)
        error_set(errp, -EINVAL, "Must specify either driver or file");
    return path ? protocol_for_path(path, errp) : NULL;
}

/* ---- opening ---- */

static int set_protocol_filename(const struct blk_driver *driver, const char *filename, struct opts *opts,
                                 struct error **errp)
{
    if (!filename || opts_has(opts, "filename"))
        return 0;
    if (driver->parse_filename)
        return driver->parse_filename(filename, opts, errp);
    opts_set(opts, "filename", filename);
    return 0;
}

static int refuse_unused(const struct blk_driver *driver, const struct opts *opts, struct error **errp)
{
    const char *key = opts_unused(opts);

    if (!key)
        return 0;
    if (driver->flags & BLK_DRIVER_PROTOCOL)
        return error_set(errp, -EINVAL, "Block protocol '%s' doesn't support the option '%s'", driver->name, key);
    return error_set(errp, -EINVAL, "Block format '%s' does not support the option '%s'", driver->name, key);
}

static coroutine_fn void co_drop_half_open(struct blk_node *node)
{
    while (!list_empty(&node->children)) {
        struct blk_child *child = list_last(&node->children, struct blk_child, in_parent);
        blk_co_node_unref(blk_child_detach(child));
    }
    blk_node_free(node);
}

/* A filter without an open of its own has its child, and nothing else. */
static coroutine_fn int co_open_filter(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    const char *role = node->driver->child_role ? node->driver->child_role : "file";
    int ret = blk_co_open_child(node, role, opts, node->filename, flags, false, errp);

    if (ret < 0)
        return ret;
    node->file = blk_node_child(node, role);
    blk_filter_follow(node);
    return 0;
}

static coroutine_fn int co_call_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    if (node->driver->co_open)
        return node->driver->co_open(node, opts, flags, errp);
    return node->driver->flags & BLK_DRIVER_FILTER ? co_open_filter(node, opts, flags, errp) : 0;
}

/* Opens a node whose driver is known. opts (everything but driver and node-name) is consumed. */
static coroutine_fn struct blk_node *co_open_with(const struct blk_driver *driver, const char *name,
                                                  const char *filename, struct opts *opts, unsigned flags,
                                                  struct blk_node *opened_for, struct error **errp)
{
    if (name && blk_node_name_taken(name)) {
        error_set(errp, -EEXIST, "Duplicate nodes with node-name='%s'", name);
        return NULL;
    }
    struct blk_node *node = blk_node_new(driver, name, flags);
    struct opts *given = NULL;

    node->filename = filename ? xstrdup(filename) : NULL;
    node->opened_for = opened_for;
    int ret = 0;
    if (driver->flags & BLK_DRIVER_PROTOCOL)
        ret = set_protocol_filename(driver, filename, opts, errp);
    given = opts_clone(opts);
    if (ret == 0)
        ret = co_call_open(node, opts, flags, errp);
    node->opened_for = NULL;
    if (ret < 0) {
        if (errp && !*errp)
            error_set_errno(errp, ret, "Could not open '%s'", filename ? filename : node->name);
        opts_free(given);
        co_drop_half_open(node);
        return NULL;
    }
    blk_drain_node_opened(node);
    opts_set(given, "driver", driver->name);
    node->options = given;
    blk_node_name_file(node);
    if (refuse_unused(driver, opts, errp) < 0) {
        blk_co_node_unref(node);
        return NULL;
    }
    return node;
}

/* Opens the protocol node below a format that has to be probed and finds the format. Leaves opts with file=NODE-NAME;
 * the node is the caller's to drop. *own: it was opened here, and not found by its name. */
static coroutine_fn struct blk_node *co_open_and_probe(const char *filename, struct opts *opts, unsigned flags,
                                                       struct blk_node *opened_for, const struct blk_driver **driver,
                                                       bool *own, struct error **errp)
{
    struct opts *file_opts = opts_take_prefix(opts, "file");
    char *reference = take_name(opts, "file");
    struct blk_node *file = NULL;

    *own = !reference;
    if (reference) {
        file = blk_node_find(reference);
        if (file)
            blk_node_ref(file);
        else
            error_set(errp, -ENODEV, "Cannot find device='%s' nor node-name='%s'", reference, reference);
    } else if (!filename && opts_count(file_opts) == 0) {
        error_set(errp, -EINVAL, "Must specify either driver or file");
    } else {
        file = blk_co_open_node(filename, file_opts, blk_child_flags("file", flags), true, opened_for, errp);
    }
    free(reference);
    opts_free(file_opts);
    if (!file)
        return NULL;
    int ret = blk_co_probe(file, driver, errp);
    if (ret < 0) {
        blk_co_node_unref(file);
        return NULL;
    }
    opts_set(opts, "file", file->name);
    return file;
}

int blk_refuse_guess(const char *filename, struct error **errp)
{
    return error_set(
        errp, -EINVAL,
        "The format of '%s' is not named, and is not guessed below a disk that is written: a guest may have "
        "made it look like another. Name it (backing.driver=FORMAT), or record it in the image (qemu-img "
        "rebase -u -F FORMAT)",
        filename ? filename : "");
}

static void overlay_option(const char *key, const char *value, void *arg) { opts_set(arg, key, value); }

/* json:{…} as options, with what was given beside it on top. Replaces *opts. */
static int unfold_json(const char *filename, struct opts **opts, struct error **errp)
{
    struct opts *json = opts_new();
    int ret = opts_parse_json(json, filename + strlen("json:"), errp);

    if (ret < 0) {
        error_prepend(errp, "Could not parse the JSON options: ");
        opts_free(json);
        return ret;
    }
    opts_each(*opts, overlay_option, json);
    opts_free(*opts);
    *opts = json;
    return 0;
}

/* A protocol opened by its name alone is what a format's "file" child wants; elsewhere the format above it is
 * probed. */
coroutine_fn struct blk_node *blk_co_open_node(const char *filename, const struct opts *given, unsigned flags,
                                               bool want_protocol, struct blk_node *opened_for, struct error **errp)
{
    struct opts *opts = given ? opts_clone(given) : opts_new();
    struct blk_node *node = NULL, *file = NULL;
    const struct blk_driver *driver = NULL;
    char *driver_name = NULL, *name = NULL;
    bool own_file = false;

    if (filename && strncmp(filename, "json:", 5) == 0) {
        if (unfold_json(filename, &opts, errp) < 0)
            goto out;
        filename = NULL;
    }
    driver_name = take_name(opts, "driver");
    name = take_name(opts, "node-name");
    if (blk_take_flags(opts, &flags, errp) < 0)
        goto out;
    take_no_backing(opts, &flags);
    if (driver_name) {
        if (blk_module_load(driver_name, NULL, errp) < 0)
            goto out;
        driver = blk_driver_find(driver_name);
        if (!driver) {
            error_set(errp, -EINVAL, "Unknown driver '%s'", driver_name);
            goto out;
        }
    } else if (want_protocol) {
        driver = find_protocol(filename, opts, errp);
        if (!driver)
            goto out;
    } else if (flags & BLK_O_NO_PROBE) {
        blk_refuse_guess(filename, errp);
        goto out;
    } else {
        file = co_open_and_probe(filename, opts, flags, opened_for, &driver, &own_file, errp);
        if (!file)
            goto out;
        flags |= BLK_O_PROBED;
        if (!filename)
            filename = file->filename;
    }
    node = co_open_with(driver, name, filename, opts, flags, opened_for, errp);
    if (node && own_file)
        list_first(&file->parents, struct blk_child, in_node)->follows = true;
out:
    blk_co_node_unref(file);
    free(driver_name);
    free(name);
    opts_free(opts);
    return node;
}

coroutine_fn struct blk_node *blk_co_open(const char *filename, const struct opts *opts, unsigned flags,
                                          struct error **errp)
{
    return blk_co_open_node(filename, opts, flags, false, NULL, errp);
}

/* ---- children ---- */

unsigned blk_child_flags(const char *role, unsigned flags)
{
    flags &= ~(unsigned)(BLK_O_PROBED | BLK_O_DETECT_MASK);
    if (strcmp(role, "backing") == 0 && (flags & BLK_O_RDWR) && !(flags & BLK_O_CHECK)) /* check writes no disk */
        flags |= BLK_O_NO_PROBE;
    if (strcmp(role, "backing") == 0)
        return flags &
               ~(unsigned)(BLK_O_RDWR | BLK_O_DSYNC | BLK_O_UNMAP | BLK_O_RESIZE | BLK_O_CHECK | BLK_O_AUTO_RDONLY);
    /* Formats decide themselves what to discard; what they do decide shall reach the host. */
    return (flags & ~(unsigned)(BLK_O_NO_BACKING | BLK_O_NO_PROBE)) | BLK_O_UNMAP;
}

static char *real_name(const char *filename)
{
    char *path = filename ? realpath(filename, NULL) : NULL;

    return path ? path : filename ? xstrdup(filename) : NULL;
}

/* A backing file that is one of the images it would be below makes the chain endless. */
static int refuse_loops(struct blk_node *parent, const char *filename, struct error **errp)
{
    AUTO_FREE char *wanted = real_name(filename);
    unsigned depth = 0;

    for (struct blk_node *above = parent; above; above = above->opened_for) {
        AUTO_FREE char *name = real_name(above->filename);
        if (++depth > MAX_DEPTH)
            return error_set(errp, -ELOOP, "The backing chain is longer than %d images", MAX_DEPTH);
        if (wanted && name && strcmp(wanted, name) == 0)
            return error_set(errp, -ELOOP, "Backing file '%s' creates an infinite loop.", filename);
    }
    return 0;
}

/* Is the child in this role an image, whose format is looked for if nobody names it? Others are what an image lies in.
 * */
static bool is_image(const char *role)
{
    return strcmp(role, "backing") == 0 || strcmp(role, "test") == 0 || strncmp(role, "children.", 9) == 0;
}

coroutine_fn int blk_co_open_child(struct blk_node *parent, const char *role, struct opts *opts, const char *filename,
                                   unsigned flags, bool optional, struct error **errp)
{
    struct opts *child_opts = opts_take_prefix(opts, role);
    char *reference = take_name(opts, role);
    struct blk_node *node = NULL;
    int ret = -EINVAL;
    bool want_protocol = !is_image(role);

    if (!want_protocol && !blk_node_writable(parent)) /* nor is it, if its file could only be opened read-only */
        flags &= ~(unsigned)BLK_O_RDWR;
    if (reference) {
        node = blk_node_find(reference);
        if (node)
            blk_node_ref(node);
        else
            error_set(errp, -ENODEV, "Cannot find device='%s' nor node-name='%s'", reference, reference);
    } else if (!filename && opts_count(child_opts) == 0) {
        ret = optional ? 0 : error_set(errp, -EINVAL, "A block device must be specified for \"%s\"", role);
        goto out;
    } else if (want_protocol || refuse_loops(parent, filename, errp) == 0) {
        if (opts_has(child_opts, "driver") || opts_has(child_opts, "filename"))
            filename = want_protocol ? NULL : filename;
        node = blk_co_open_node(filename, child_opts, blk_child_flags(role, flags), want_protocol, parent, errp);
    }
    if (!node)
        goto out;
    /* What could only be opened read-only (auto-read-only) makes its users so, too. */
    if (want_protocol && blk_node_writable(parent) && !blk_node_writable(node)) {
        if (!(parent->open_flags & BLK_O_AUTO_RDONLY)) {
            ret = error_set(errp, -EACCES, "Block node is read-only");
            blk_co_node_unref(node);
            goto out;
        }
        parent->open_flags &= ~(unsigned)BLK_O_RDWR;
    }
    struct blk_child *child = blk_child_attach(parent, NULL, role, node);
    child->follows = !reference;
    blk_co_perm_wait(parent);
    /* Now, before the driver changes a byte: what it does by itself is in its rules. */
    ret = blk_perm_attach(child, errp);
    if (ret < 0)
        blk_co_node_unref(blk_child_detach(child));
out:
    free(reference);
    opts_free(child_opts);
    return ret;
}
