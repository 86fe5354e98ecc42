/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The name of an open node, as info and map print it: the plain file name if opening that shows the same content,
 * else json:{…} with all that the content depends on.
 *
 * It is made of the graph and the options that OPT_CONTENT marks, so how a node was opened (by name, prefix, options,
 * JSON) and what only changes its speed (aio, caches, locking) do not show.
 */
#include "open.h"

#include <base/compiler.h>
#include <block/image.h>
#include <stdlib.h>
#include <string.h>

/* ---- what the content depends on ---- */

static bool is_key_of(const char *role, const char *key)
{
    size_t length = strlen(role);

    return strncmp(key, role, length) == 0 && (key[length] == '.' || !key[length]);
}

/* Options of children are theirs to name. */
static bool is_child_key(const struct blk_node *node, const char *key)
{
    const struct blk_child *child;

    list_for_each(child, &node->children, in_parent) {
        if (is_key_of(child->role, key))
            return true;
    }
    return (node->open_flags & BLK_O_NO_IO) && is_key_of("data-file", key); /* left out */
}

static const struct opt_desc *find_option(const struct opt_desc *table, const char *key)
{
    return table ? opts_find(table, key) : NULL;
}

/* A key that no table has, such as a list's, is taken for one that matters: better too long a name than a wrong one. */
static bool is_content(const struct blk_node *node, const char *key)
{
    const struct opt_desc *desc = find_option(node->driver->options, key);

    if (strcmp(key, "driver") == 0 || is_child_key(node, key))
        return false;
    if (!desc && find_option(blk_node_options, key))
        return false;
    return !desc || (desc->flags & OPT_CONTENT);
}

struct content {
    const struct blk_node *node;
    json_t *object;        /* takes the pairs, maybe NULL */
    const char *file_name; /* "filename" */
    bool more;             /* any other */
};

static void collect(const char *key, const char *value, void *arg)
{
    struct content *content = arg;

    if (!is_content(content->node, key))
        return;
    if (strcmp(key, "filename") == 0)
        content->file_name = value;
    else
        content->more = true;
    if (content->object)
        json_object_set_new(content->object, key, opts_json_value(content->node->options, key));
}

/* ---- plain names ---- */

static char *plain_name(const struct blk_node *node);

/* Those of its children, in order; NULL if one has none. */
static char *plain_names_below(const struct blk_node *node)
{
    const struct blk_child *child;
    char *names = NULL;

    list_for_each(child, &node->children, in_parent) {
        AUTO_FREE char *name = plain_name(child->node), *before = names;
        names = !name ? NULL : before ? xasprintf("%s:%s", before, name) : xstrdup(name);
        if (!names)
            return NULL;
    }
    return names ? names : xstrdup("");
}

/* A name that opens the image again; NULL if there is none. Depth is that of the graph. The caller frees it. */
static char *plain_name(const struct blk_node *node)
{
    const struct blk_driver *driver = node->driver;
    struct content content = { .node = node };

    opts_each(node->options, collect, &content);
    if (content.more)
        return NULL;
    if (driver->name_prefix) {
        AUTO_FREE char *below = plain_names_below(node);
        return below ? xasprintf("%s%s", driver->name_prefix, below) : NULL;
    }
    if (driver->flags & BLK_DRIVER_PROTOCOL)
        return content.file_name ? blk_path_as_file(content.file_name) : NULL;
    /* A format above a format would be probed as one of them only. */
    bool bare = node->file && ((node->file->driver->flags & BLK_DRIVER_PROTOCOL) || node->file->driver->name_prefix);
    return bare && (driver->flags & BLK_DRIVER_FORMAT) ? plain_name(node->file) : NULL;
}

/* ---- json:{…} ---- */

/* As QEMU orders keys; those that are not here come last. */
static const char *const key_order[] = { "children",        "opt-write-zero", "max-write-zero", "image",
                                         "max-transfer",    "offset",         "read-zeroes",    "log",
                                         "log-sector-size", "driver",         "opt-discard",    "max-discard",
                                         "align",           "log-append",     "size",           "file",
                                         "filename" };

static json_t *ordered(json_t *object)
{
    json_t *result = json_object();

    for (size_t i = 0; i < ARRAY_SIZE(key_order); i++) {
        json_t *value = json_object_get(object, key_order[i]);
        if (value)
            json_object_set(result, key_order[i], value);
    }
    json_object_update_missing(result, object);
    json_decref(object);
    return result;
}

/* Children that are told apart by number alone. */
static json_t *list_in(json_t *object)
{
    json_t *list = json_object_get(object, "children");

    if (!list) {
        list = json_array();
        json_object_set_new(object, "children", list);
    }
    return list;
}

static json_t *to_json(const struct blk_node *node)
{
    struct content content = { .node = node, .object = json_object() };
    const struct blk_child *child;

    json_object_set_new(content.object, "driver", json_string(node->driver->name));
    opts_each(node->options, collect, &content);
    list_for_each(child, &node->children, in_parent) {
        if (strncmp(child->role, "children.", 9) == 0)
            json_array_append_new(list_in(content.object), to_json(child->node));
        else if (strcmp(child->role, "backing") != 0) /* the image says it itself */
            json_object_set_new(content.object, child->role, to_json(child->node));
    }
    return ordered(content.object);
}

void blk_node_name_file(struct blk_node *node)
{
    free(node->filename);
    node->filename = plain_name(node);
    if (node->filename)
        return;
    json_t *object = to_json(node);
    char *text = json_dumps(object, JSON_PRESERVE_ORDER | JSON_ENSURE_ASCII);
    node->filename = xasprintf("json:%s", text ? text : "{}");
    free(text);
    json_decref(object);
}
