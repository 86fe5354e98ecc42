/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names of images: `protocol:rest`, and paths relative to the image that mentions them. */
#include "open.h"

#include <base/compiler.h>
#include <block/image.h>
#include <stdlib.h>
#include <string.h>

bool blk_path_has_protocol(const char *name)
{
    size_t length = strcspn(name, ":/");

    return length > 0 && name[length] == ':';
}

char *blk_path_combine(const char *base, const char *name)
{
    if (name[0] == '/' || blk_path_has_protocol(name))
        return xstrdup(name);

    /* The folder of base: up to its last slash; of `protocol:path`, what follows the colon at the least. */
    const char *end = strrchr(base, '/');
    if (!end && blk_path_has_protocol(base))
        end = strchr(base, ':');
    int folder_length = end ? (int)(end - base) + 1 : 0;
    return xasprintf("%.*s%s", folder_length, base, name);
}

/* Only "driver" and the file's own name (and the common keys, which a name does not carry): then the name says all. */
static void find_more_than_a_name(const char *key, const char *value, void *arg)
{
    static const char *const plain[] = { "driver",        "filename",  "file",          "file.driver",
                                         "file.filename", "node-name", "file.node-name" };
    bool *more = arg;

    (void)value;
    for (size_t i = 0; i < ARRAY_SIZE(plain); i++) {
        if (strcmp(key, plain[i]) == 0)
            return;
    }
    for (const struct opt_desc *desc = blk_node_options; desc->name; desc++) {
        size_t skip = strncmp(key, "file.", 5) == 0 ? 5 : 0;
        if (strcmp(key + skip, desc->name) == 0)
            return;
    }
    *more = true;
}

struct name_search {
    const char *filename;
};

static void find_filename(const char *key, const char *value, void *arg)
{
    struct name_search *search = arg;

    if (strcmp(key, "filename") == 0)
        search->filename = value;
}

void blk_node_name_file(struct blk_node *node)
{
    bool more = false;
    struct name_search search = { 0 };

    if (node->filename)
        return;
    opts_each(node->options, find_more_than_a_name, &more);
    opts_each(node->options, find_filename, &search);
    if (!more && (search.filename || node->file)) {
        node->filename = xstrdup(search.filename ? search.filename : node->file->filename);
        return;
    }
    json_t *object = opts_to_json(node->options);
    char *text = json_dumps(object, JSON_PRESERVE_ORDER);
    node->filename = xasprintf("json:%s", text ? text : "{}");
    free(text);
    json_decref(object);
}
