/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Intrusive doubly linked list. The head is a node that links to itself when the list is empty; an entry that is on no
 * list may be initialised with list_init() so that list_remove() on it is harmless. No locking: the owner says which.
 */
#pragma once

#include <base/compiler.h>
#include <stdbool.h>

struct list {
    struct list *next, *prev;
};

static inline void list_init(struct list *l) { l->next = l->prev = l; }
static inline bool list_empty(const struct list *head) { return head->next == head; }

static inline void list_insert_before(struct list *entry, struct list *at)
{
    entry->next = at;
    entry->prev = at->prev;
    at->prev->next = entry;
    at->prev = entry;
}

static inline void list_append(struct list *head, struct list *entry) { list_insert_before(entry, head); }
static inline void list_prepend(struct list *head, struct list *entry) { list_insert_before(entry, head->next); }

static inline void list_remove(struct list *entry)
{
    entry->prev->next = entry->next;
    entry->next->prev = entry->prev;
    list_init(entry);
}

/* Moves all entries of `from` to the end of `to`; `from` is empty afterwards. */
static inline void list_splice(struct list *to, struct list *from)
{
    if (list_empty(from))
        return;
    from->next->prev = to->prev;
    from->prev->next = to;
    to->prev->next = from->next;
    to->prev = from->prev;
    list_init(from);
}

#define list_entry(ptr, type, member) container_of(ptr, type, member)
#define list_first(head, type, member) list_entry((head)->next, type, member)
#define list_last(head, type, member) list_entry((head)->prev, type, member)
/* An entry's link, by arithmetic: at the end of a walk `it` is not an entry, and may not even be aligned like one. */
#define list_link(it, member) ((struct list *)((char *)(it) + offsetof(__typeof__(*(it)), member)))
#define list_next(it, member) list_entry(list_link(it, member)->next, __typeof__(*(it)), member)
#define list_for_each(it, head, member) \
    for (it = list_first(head, __typeof__(*it), member); list_link(it, member) != (head); it = list_next(it, member))
/* The body may remove and free `it`. */
#define list_for_each_safe(it, tmp, head, member) \
    for (it = list_first(head, __typeof__(*it), member), tmp = list_next(it, member); list_link(it, member) != (head); \
         it = tmp, tmp = list_next(it, member))
