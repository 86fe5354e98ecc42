/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Objects that a person makes by -object (vmm) and --object (img-tool): a secret, an iothread. A kind is one file that
 * registers itself with OBJECT_KIND. Ids are unique over all kinds. Main thread.
 */
#pragma once

#include <base/error.h>
#include <base/opts.h>
#include <stdbool.h>

struct object_kind {
    const char *name; /* qom-type */
    const struct opt_desc *options;
    /* Takes what it needs from opts, whose names have been checked, and returns its state in *state. */
    int (*create)(const char *id, struct opts *opts, void **state, struct error **errp);
    void (*free)(void *state);
    struct object_kind *next;
};
void object_kind_register(struct object_kind *kind);
#define OBJECT_KIND(kind) \
    __attribute__((constructor)) static void register_##kind(void) { object_kind_register(&kind); }

/*
 * Reads the option's text, `KIND,key=value,…` or JSON. What the text holds of a secret is overwritten in place, so
 * that neither the process list nor a message shows it: call it before anything else looks at the text. NULL and *errp
 * if it is malformed.
 */
struct opts *object_parse(char *text, struct error **errp);

enum object_words {
    OBJECT_WORDS_VMM,  /* errors as qemu-system-x86_64 says them */
    OBJECT_WORDS_TOOL, /* as qemu-img */
};
/* Makes the object; what it needs is taken out of opts. */
int object_create(struct opts *opts, enum object_words words, struct error **errp);
/* All of them, the last first. Those who used them are gone. */
void objects_free(void);

/* The state of the object of this kind, or NULL if there is no such id, or it is of another kind. */
void *object_find(const struct object_kind *kind, const char *id);
/* The name of the kind of the object with this id; NULL if there is none. */
const char *object_kind_of(const char *id);

/* "help" and "KIND,help": prints to standard output and returns true. */
bool object_help(const char *text);
