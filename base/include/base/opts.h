/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Options: what a person or a script gives to a node, a device, an object, a sub-command.
 *
 * One table of struct opt_desc describes a thing's options: the command line (`key=value,key=value`), JSON (-blockdev,
 * json: names), validation, `--help` and the manual's tables all come from it.
 *
 * A struct opts is an ordered set of (dotted key, value). `file.filename=x` and {"file": {"filename": "x"}} are the
 * same; lists are `children.0=…`. Each value remembers whether it came as text (anything may be parsed from it) or as a
 * JSON type (then it must fit the table's type), and whether somebody has consumed it: opts_unused() names those left
 * over, so an unknown key is refused by name. Not thread-safe; one owner.
 */
#pragma once

#include <base/error.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum opt_type { OPT_STRING, OPT_BOOL, OPT_NUMBER, OPT_SIZE, OPT_ENUM };

enum opt_flags {
    /* Of a block node: */
    OPT_CONTENT = 1u << 0, /* what the disk holds depends on it, so it is part of the node's name */
    OPT_REOPEN = 1u << 1,  /* may change while the node is open */
    /* Of a new image: known, but what it asks for does not exist yet. Refused, unless it is a bool and off. */
    OPT_MISSING = 1u << 2,
    /* OPT_ENUM: a word that is none is an "invalid parameter value: x", as QEMU says of some. */
    OPT_TERSE = 1u << 3,
};

struct opt_desc {
    const char *name; /* NULL ends a table */
    enum opt_type type;
    const char *def; /* default as text, NULL: none */
    const char *help;
    const char *const *values; /* OPT_ENUM: NULL-terminated */
    char default_suffix;       /* OPT_SIZE: 'B' where 0 */
    unsigned flags;            /* OPT_CONTENT… */
    size_t at;                 /* OPT_AT(): where opts_read() puts it; 0: nowhere */
};

/* A member of the struct that opts_read() fills in: const char * for OPT_STRING, bool, uint64_t for OPT_NUMBER and
 * OPT_SIZE, int for OPT_ENUM. */
#define OPT_AT(type, member) (offsetof(type, member) + 1)

struct opts;

struct opts *opts_new(void);
void opts_free(struct opts *opts); /* takes NULL */
struct opts *opts_clone(const struct opts *opts);

enum opts_parse_flags {
    OPTS_LAST_WINS = 1u << 0,  /* of a key that is given twice (as in qemu-img -o); else that is an error by name */
    OPTS_WARN_SHORT = 1u << 1, /* "short-form boolean option 'c' deprecated" on standard error, as qemu-img does */
};
/* "a=b,c,nod,e=x,,y": `c` alone is c=on, `nod` is d=off, a doubled comma is a comma. `implied` (may be NULL) is the key
 * of a first part without '='. flags: OPTS_*. */
int opts_parse(struct opts *opts, const char *text, const char *implied, unsigned flags, struct error **errp);
/* Flattens a JSON object. Text must hold one object and nothing after it. */
int opts_parse_json(struct opts *opts, const char *text, struct error **errp);
int opts_from_json(struct opts *opts, const json_t *object, struct error **errp);
/* Back to a nested JSON object, for json: file names and query commands. New reference. */
json_t *opts_to_json(const struct opts *opts);
/* One value, of the type that it came as; NULL where absent. New reference. */
json_t *opts_json_value(const struct opts *opts, const char *key);

void opts_set(struct opts *opts, const char *key, const char *value); /* as text; replaces */
void opts_set_bool(struct opts *opts, const char *key, bool value);
void opts_set_number(struct opts *opts, const char *key, int64_t value);
bool opts_del(struct opts *opts, const char *key);
bool opts_has(const struct opts *opts, const char *key);
const char *opts_text(const struct opts *opts, const char *key);   /* NULL where absent; valid while nothing changes */
bool opts_has_prefix(const struct opts *opts, const char *prefix); /* any key that begins "prefix." */
size_t opts_count(const struct opts *opts);
/* Calls fn for each pair in order, value as text. */
void opts_each(const struct opts *opts, void (*fn)(const char *key, const char *value, void *arg), void *arg);

/* The key of the pair at `index` in the order of the set; NULL past the last. */
const char *opts_key(const struct opts *opts, size_t index);
/* Sets `key` to what it is in `from`, where it must be: the value, of the type that it came as. */
void opts_copy(struct opts *opts, const struct opts *from, const char *key);

/* Moves all keys "prefix.xyz" into a new set as "xyz". Never NULL, maybe empty. */
struct opts *opts_take_prefix(struct opts *opts, const char *prefix);
/* Takes one key's value as text out of the set; NULL where absent. The caller frees it. */
char *opts_take(struct opts *opts, const char *key);

/*
 * Typed reading through a table: marks the key consumed, uses the table's default where the key is absent, and refuses
 * a bad value with QEMU's words ("Parameter 'size' expects a non-negative number below 2^64" and so on), naming the
 * key. Return 1 where the key was given, 0 where it was absent (*out is then the default, or untouched where there is
 * none), negative errno and *errp otherwise. The key must be in the table (asserted).
 */
int opts_string(struct opts *opts, const struct opt_desc *table, const char *key, const char **out,
                struct error **errp);
int opts_bool(struct opts *opts, const struct opt_desc *table, const char *key, bool *out, struct error **errp);
int opts_number(struct opts *opts, const struct opt_desc *table, const char *key, uint64_t *out, struct error **errp);
int opts_size(struct opts *opts, const struct opt_desc *table, const char *key, uint64_t *out, struct error **errp);
/* Reads every option of the table that has a place (OPT_AT) into *into, as the functions above do; what is absent and
 * has no default leaves its place as it was. Strings are valid while the set does not change. 0, or -errno of the first
 * that is bad. */
int opts_read(struct opts *opts, const struct opt_desc *table, void *into, struct error **errp);
/* *out is the index into the table's values. */
int opts_enum(struct opts *opts, const struct opt_desc *table, const char *key, int *out, struct error **errp);

/* Checks every key of the set against the table without consuming: an unknown key is "Invalid parameter 'x'". */
int opts_validate(const struct opts *opts, const struct opt_desc *table, struct error **errp);
/* The first key that nobody consumed, or NULL. */
const char *opts_unused(const struct opts *opts);

/* The table as people read it, in the layout of `qemu-img create -f FMT -o help`: "  name=<type>  - help (default:
 * x)". */
void opts_print_help(const struct opt_desc *table, FILE *out);
const struct opt_desc *opts_find(const struct opt_desc *table, const char *name);
