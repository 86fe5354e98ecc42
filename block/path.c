/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names of images: `protocol:rest`, and paths relative to the image that mentions them. */
#include <base/compiler.h>
#include <block/image.h>
#include <stdlib.h>
#include <string.h>

bool blk_path_has_protocol(const char *name)
{
    size_t length = strcspn(name, ":/");

    return name[length] == ':';
}

char *blk_path_as_file(const char *path) { return xasprintf("%s%s", blk_path_has_protocol(path) ? "./" : "", path); }

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
