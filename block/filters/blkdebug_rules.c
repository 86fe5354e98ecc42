/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The rules of blkdebug: inject-error.N and set-state.N as in QEMU, matched against each I/O that comes to the node.
 *
 * An event arms the rules that wait for it in the present state, and disarms those of other events, if there is one to
 * arm; then it moves the state. Rules without an event are always armed. Of each I/O the first armed rule that matches
 * it, and has no I/O left to let pass, decides. Events come from a format above (block/event.h), and from the node
 * itself: a write, zeroes or a flush that arrives, and, if nobody above tells events, a read or a write.
 */
#include "blkdebug_rules.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>

static const char *const type_words[] = { "read", "write", "write-zeroes", "discard", "flush", "block-status", NULL };
#define TYPES_BY_DEFAULT ((1u << BLKDEBUG_BLOCK_STATUS) - 1)

struct rule {
    struct list link;
    unsigned types;
    int event;
    int error; /* positive; 0: only a delay */
    bool any_sector;
    uint64_t sector;
    bool once, cut, armed;
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
    { .name = "event", .type = OPT_ENUM, .def = "none", .values = blk_event_words, .help = "trigger event" },
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
    { .name = "event", .type = OPT_ENUM, .values = blk_event_words, .help = "trigger event" },
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

static bool rule_matches(const struct blkdebug_rules *s, const struct rule *rule, const struct request *r)
{
    if (!(rule->types & 1u << r->type))
        return false;
    if (rule->event == BLK_EVENT_NONE ? rule->state && rule->state != s->state : !rule->armed)
        return false;
    if (rule->any_sector)
        return true;
    return rule->sector >= r->offset / BLK_SECTOR_SIZE &&
           rule->sector < div_round_up(r->offset + r->length, BLK_SECTOR_SIZE);
}

static bool waits_for(const struct blkdebug_rules *s, const struct rule *rule, enum blk_event event)
{
    return rule->event == (int)event && (!rule->state || rule->state == s->state);
}

void blkdebug_rules_event(struct blkdebug_rules *s, enum blk_event event)
{
    const struct transition *t;
    struct rule *rule;
    bool any = false;

    pthread_mutex_lock(&s->lock);
    uint64_t state = s->state;
    list_for_each(rule, &s->rules, link)
        any = any || waits_for(s, rule, event);
    list_for_each(rule, &s->rules, link) {
        if (any)
            rule->armed = waits_for(s, rule, event);
    }
    list_for_each(t, &s->transitions, link) {
        if (t->event == (int)event && (!t->state || t->state == s->state))
            state = t->new_state;
    }
    s->state = state;
    pthread_mutex_unlock(&s->lock);
}

/* The first rule that does something decides. */
struct blkdebug_verdict blkdebug_rules_judge(struct blkdebug_rules *s, enum blkdebug_type type, uint64_t offset,
                                             uint64_t length)
{
    struct request request = { type, offset, length }, *r = &request;
    struct blkdebug_verdict verdict = { 0 };
    struct rule *rule, *next;

    pthread_mutex_lock(&s->lock);
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
