/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The registry of objects and of their kinds. Invariant: no message that is made here contains a value of an option,
 * because it may be a secret.
 */
#include <objects/object.h>

#include <base/compiler.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct object {
    char *id;
    const struct object_kind *kind;
    void *state;
    struct object *next; /* the one made before it */
};

static struct object_kind *kinds; /* by name */
static struct object *objects;    /* the last one made first */

void object_kind_register(struct object_kind *kind)
{
    struct object_kind **at = &kinds;
    while (*at && strcmp((*at)->name, kind->name) < 0)
        at = &(*at)->next;
    kind->next = *at;
    *at = kind;
}

static const struct object_kind *find_kind(const char *name, size_t length)
{
    for (const struct object_kind *kind = kinds; kind; kind = kind->next)
        if (strlen(kind->name) == length && memcmp(kind->name, name, length) == 0)
            return kind;
    return NULL;
}

static const struct object *find(const char *id)
{
    for (const struct object *object = objects; object; object = object->next)
        if (strcmp(object->id, id) == 0)
            return object;
    return NULL;
}

void *object_find(const struct object_kind *kind, const char *id)
{
    const struct object *object = find(id);
    return object && object->kind == kind ? object->state : NULL;
}

const char *object_kind_of(const char *id)
{
    const struct object *object = find(id);
    return object ? object->kind->name : NULL;
}

/* ---- making one ---- */

static const struct opt_desc common_options[] = {
    { .name = "qom-type", .type = OPT_STRING, .help = "kind of the object" },
    { .name = "id", .type = OPT_STRING, .help = "name" },
    { 0 },
};

static bool is_identifier(const char *id)
{
    if (!isalpha((unsigned char)*id))
        return false;
    for (; *id; id++)
        if (!isalnum((unsigned char)*id) && !strchr("-._", *id))
            return false;
    return true;
}

static int check_id(const char *id, enum object_words words, struct error **errp)
{
    if (!is_identifier(id))
        return error_set(errp, -EINVAL,
                         "Parameter 'id' expects an identifier\n"
                         "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.");
    if (!find(id))
        return 0;
    return words == OBJECT_WORDS_VMM
               ? error_set(errp, -EEXIST, "Duplicate ID '%s' for object", id)
               : error_set(errp, -EEXIST, "attempt to add duplicate property '%s' to object (type 'container')", id);
}

struct unknown {
    const struct object_kind *kind;
    const char *key;
};

static void look_for_unknown(const char *key, const char *value, void *arg)
{
    struct unknown *unknown = arg;
    if (!unknown->key && !opts_find(unknown->kind->options, key) && !opts_find(common_options, key))
        unknown->key = key;
}

static int check_keys(const struct object_kind *kind, const struct opts *opts, enum object_words words,
                      struct error **errp)
{
    struct unknown unknown = { .kind = kind };
    opts_each(opts, look_for_unknown, &unknown);
    if (!unknown.key)
        return 0;
    return words == OBJECT_WORDS_VMM ? error_set(errp, -EINVAL, "Invalid parameter '%s'", unknown.key)
                                     : error_set(errp, -EINVAL, "Parameter '%s' is unexpected", unknown.key);
}

int object_create(struct opts *opts, enum object_words words, struct error **errp)
{
    const char *type = NULL, *id = NULL;
    if (opts_string(opts, common_options, "qom-type", &type, errp) < 0)
        return -EINVAL;
    if (!type)
        return error_set(errp, -EINVAL, "Parameter 'qom-type' is missing");
    const struct object_kind *kind = find_kind(type, strlen(type));
    if (!kind)
        return error_set(errp, -EINVAL, "Parameter 'qom-type' does not accept value '%s'", type);
    int given = opts_string(opts, common_options, "id", &id, errp);
    if (given <= 0)
        return given < 0 ? given : error_set(errp, -EINVAL, "Parameter 'id' is missing");
    int err = check_keys(kind, opts, words, errp);
    if (!err)
        err = check_id(id, words, errp);
    void *state = NULL;
    if (!err)
        err = kind->create(id, opts, &state, errp);
    if (err)
        return err;
    struct object *object = xcalloc(1, sizeof(*object));
    *object = (struct object){ xstrdup(id), kind, state, objects };
    objects = object;
    return 0;
}

void objects_free(void)
{
    while (objects) {
        struct object *object = objects;
        objects = object->next;
        object->kind->free(object->state);
        free(object->id);
        free(object);
    }
}

bool object_help(const char *text)
{
    size_t length = strcspn(text, ",");
    if (strcmp(text, "help") == 0 || strcmp(text, "?") == 0) {
        printf("List of user creatable objects:\n");
        for (const struct object_kind *kind = kinds; kind; kind = kind->next)
            printf("  %s\n", kind->name);
        return true;
    }
    const struct object_kind *kind = find_kind(text, length);
    if (!kind || (strcmp(text + length, ",help") != 0 && strcmp(text + length, ",?") != 0))
        return false;
    printf("%s options:\n", kind->name);
    opts_print_help(kind->options, stdout);
    return true;
}
