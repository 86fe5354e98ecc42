/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The rules of blkdebug: inject-error.N and set-state.N as in QEMU, matched against each I/O that comes to the node.
 *
 * Events are those that the node itself sees, an I/O that arrives; `none` is any of them. They first move the state,
 * then the first rule that matches, and has no I/O left to let pass, decides.
 */
#include "blkdebug_rules.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>

static const char *const type_words[] = { "read", "write", "write-zeroes", "discard", "flush", "block-status", NULL };
#define TYPES_BY_DEFAULT ((1u << BLKDEBUG_BLOCK_STATUS) - 1)

enum { EVENT_NONE, EVENT_READ_AIO, EVENT_WRITE_AIO, EVENT_PWRITEV, EVENT_PWRITEV_ZERO, EVENT_FLUSH_TO_DISK };
static const char *const event_words[] = { "none",         "read_aio",      "write_aio", "pwritev",
                                           "pwritev_zero", "flush_to_disk", NULL };

struct rule {
    struct list link;
    unsigned types;
    int event;
    int error; /* positive; 0: only a delay */
    bool any_sector;
    uint64_t sector;
    bool once, cut;
    uint64_t state; /* 0: any */
    uint64_t left;  /* matching I/Os to let pass */
    uint64_t delay_ns;
};

struct transition {
    struct list link;
    int event;
    uint64_t state, new_state; /* state 0: from any */
};

static const struct opt_desc rule_options[] = {
    { .name = "event", .type = OPT_ENUM, .def = "none", .values = event_words, .help = "trigger event" },
    { .name = "iotype",
      .type = OPT_ENUM,
      .values = type_words,
      .help = "type of I/O to fail (default: all but block-status)" },
    { .name = "errno", .type = OPT_NUMBER, .def = "5", .help = "error number; 0 for none" },
    { .name = "sector", .type = OPT_NUMBER, .help = "only I/O that touches this 512-byte sector" },
    { .name = "once", .type = OPT_BOOL, .def = "off", .help = "fail one I/O only" },
    { .name = "immediately", .type = OPT_BOOL, .def = "off", .help = "accepted; errors come as soon as they can" },
    { .name = "state", .type = OPT_NUMBER, .def = "0", .help = "only in this state (0: any)" },
    { .name = "after", .type = OPT_NUMBER, .def = "1", .help = "start with the N-th matching I/O" },
    { .name = "delay-ns", .type = OPT_NUMBER, .def = "0", .help = "wait before the I/O" },
    { .name = "short", .type = OPT_BOOL, .def = "off", .help = "write the first half before failing" },
    { 0 },
};

static const struct opt_desc transition_options[] = {
    { .name = "event", .type = OPT_ENUM, .values = event_words, .help = "trigger event" },
    { .name = "state", .type = OPT_NUMBER, .def = "0", .help = "only in this state (0: any)" },
    { .name = "new_state", .type = OPT_NUMBER, .help = "state to go to" },
    { 0 },
};

/* ---- options ---- */

static int read_rule(struct opts *opts, struct rule *rule, struct error **errp)
{
    int type = 0;
    uint64_t error = 0;
    int ret = opts_enum(opts, rule_options, "iotype", &type, errp);

    rule->types = ret > 0 ? 1u << type : TYPES_BY_DEFAULT;
    if (ret >= 0)
        ret = opts_enum(opts, rule_options, "event", &rule->event, errp);
    if (ret >= 0)
        ret = opts_number(opts, rule_options, "errno", &error, errp);
    if (ret >= 0)
        ret = opts_number(opts, rule_options, "sector", &rule->sector, errp);
    rule->any_sector = ret == 0;
    if (ret >= 0)
        ret = opts_bool(opts, rule_options, "once", &rule->once, errp);
    if (ret >= 0)
        ret = opts_bool(opts, rule_options, "short", &rule->cut, errp);
    if (ret >= 0)
        ret = opts_number(opts, rule_options, "state", &rule->state, errp);
    if (ret >= 0)
        ret = opts_number(opts, rule_options, "after", &rule->left, errp);
    if (ret >= 0)
        ret = opts_number(opts, rule_options, "delay-ns", &rule->delay_ns, errp);
    if (ret >= 0)
        ret = opts_validate(opts, rule_options, errp);
    if (ret < 0)
        return ret;
    if (error > 4095)
        return error_set(errp, -EINVAL, "Parameter 'errno' expects a number below 4096");
    if (rule->left == 0)
        return error_set(errp, -EINVAL, "Parameter 'after' counts from 1");
    rule->error = (int)error;
    rule->left--;
    return 0;
}

int blkdebug_rules_add(struct blkdebug_rules *s, struct opts *opts, struct error **errp)
{
    struct rule *rule = xcalloc(1, sizeof(*rule));
    int ret = read_rule(opts, rule, errp);

    if (ret < 0) {
        free(rule);
        return ret;
    }
    pthread_mutex_lock(&s->lock);
    list_append(&s->rules, &rule->link);
    pthread_mutex_unlock(&s->lock);
    atomic_store(&s->any, true);
    return 0;
}

static int add_transition(struct blkdebug_rules *s, struct opts *opts, struct error **errp)
{
    struct transition *t = xcalloc(1, sizeof(*t));
    int given = opts_enum(opts, transition_options, "event", &t->event, errp);
    int ret = given;

    if (given == 0)
        ret = error_set(errp, -EINVAL, "Missing event name for rule");
    if (ret >= 0)
        ret = opts_number(opts, transition_options, "state", &t->state, errp);
    if (ret >= 0)
        ret = opts_number(opts, transition_options, "new_state", &t->new_state, errp);
    if (ret == 0)
        ret = error_set(errp, -EINVAL, "Parameter 'new_state' is missing");
    if (ret >= 0)
        ret = opts_validate(opts, transition_options, errp);
    if (ret < 0) {
        free(t);
        return ret;
    }
    list_append(&s->transitions, &t->link);
    atomic_store(&s->any, true);
    return 0;
}

/* PREFIX.0.…, PREFIX.1.…, as far as they go. */
static int read_list(struct blkdebug_rules *s, struct opts *opts, const char *prefix,
                     int (*add)(struct blkdebug_rules *s, struct opts *opts, struct error **errp), struct error **errp)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0; i++) {
        AUTO_FREE char *key = xasprintf("%s.%u", prefix, i);
        if (!opts_has_prefix(opts, key))
            break;
        struct opts *one = opts_take_prefix(opts, key);
        ret = add(s, one, errp);
        opts_free(one);
    }
    return ret;
}

int blkdebug_rules_read(struct blkdebug_rules *s, struct opts *opts, struct error **errp)
{
    int ret = read_list(s, opts, "inject-error", blkdebug_rules_add, errp);

    return ret < 0 ? ret : read_list(s, opts, "set-state", add_transition, errp);
}

void blkdebug_rules_init(struct blkdebug_rules *s)
{
    pthread_mutex_init(&s->lock, NULL);
    list_init(&s->rules);
    list_init(&s->transitions);
    s->state = 1;
}

void blkdebug_rules_clear(struct blkdebug_rules *s)
{
    struct rule *rule, *next;

    pthread_mutex_lock(&s->lock);
    list_for_each_safe(rule, next, &s->rules, link) {
        list_remove(&rule->link);
        free(rule);
    }
    pthread_mutex_unlock(&s->lock);
}

void blkdebug_rules_finish(struct blkdebug_rules *s)
{
    struct transition *t, *next;

    blkdebug_rules_clear(s);
    list_for_each_safe(t, next, &s->transitions, link) {
        list_remove(&t->link);
        free(t);
    }
    pthread_mutex_destroy(&s->lock);
}

/* ---- rules ---- */

struct request {
    unsigned type;
    uint64_t offset, length;
};

static bool event_is(int event, unsigned type)
{
    switch (event) {
    case EVENT_READ_AIO: return type == BLKDEBUG_READ;
    case EVENT_WRITE_AIO:
    case EVENT_PWRITEV: return type == BLKDEBUG_WRITE;
    case EVENT_PWRITEV_ZERO: return type == BLKDEBUG_WRITE_ZEROES;
    case EVENT_FLUSH_TO_DISK: return type == BLKDEBUG_FLUSH;
    default: return true;
    }
}

static bool rule_matches(const struct blkdebug_rules *s, const struct rule *rule, const struct request *r)
{
    if (!(rule->types & 1u << r->type) || !event_is(rule->event, r->type))
        return false;
    if (rule->state && rule->state != s->state)
        return false;
    if (rule->any_sector)
        return true;
    return rule->sector >= r->offset / BLK_SECTOR_SIZE &&
           rule->sector < div_round_up(r->offset + r->length, BLK_SECTOR_SIZE);
}

static void next_state(struct blkdebug_rules *s, unsigned type)
{
    uint64_t old = s->state;
    const struct transition *t;

    list_for_each(t, &s->transitions, link) {
        if (t->event != EVENT_NONE && event_is(t->event, type) && (!t->state || t->state == old))
            s->state = t->new_state;
    }
}

/* The first rule that does something decides. */
struct blkdebug_verdict blkdebug_rules_judge(struct blkdebug_rules *s, enum blkdebug_type type, uint64_t offset,
                                             uint64_t length)
{
    struct request request = { type, offset, length }, *r = &request;
    struct blkdebug_verdict verdict = { 0 };
    struct rule *rule, *next;

    pthread_mutex_lock(&s->lock);
    next_state(s, r->type);
    list_for_each_safe(rule, next, &s->rules, link) {
        if (!rule_matches(s, rule, r))
            continue;
        if (rule->left > 0) {
            rule->left--;
            continue;
        }
        verdict = (struct blkdebug_verdict){ rule->error, rule->delay_ns, rule->cut };
        if (rule->once) {
            list_remove(&rule->link);
            free(rule);
        }
        break;
    }
    pthread_mutex_unlock(&s->lock);
    return verdict;
}
