/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Logging for people who debug, trace points for tools that watch.
 *
 * log_debug() prints only where its category is named in VMM_LOG (comma separated, "all" for everything), on standard
 * error with a time and the thread. It costs one predictable branch when off. Never used to report errors.
 *
 * TRACEn(name, …) is a USDT probe `vmm:name` (systemtap-sdt-dev; perf, bpftrace, gdb see it): one nop instruction when
 * nobody attaches, nothing at all where <sys/sdt.h> is missing at build time.
 */
#pragma once

#include <stdbool.h>

#ifdef HAVE_SDT
#include <sys/sdt.h>
#define TRACE0(name) DTRACE_PROBE(vmm, name)
#define TRACE1(name, a) DTRACE_PROBE1(vmm, name, a)
#define TRACE2(name, a, b) DTRACE_PROBE2(vmm, name, a, b)
#define TRACE3(name, a, b, c) DTRACE_PROBE3(vmm, name, a, b, c)
#define TRACE4(name, a, b, c, d) DTRACE_PROBE4(vmm, name, a, b, c, d)
#else
#define TRACE0(name) ((void)0)
#define TRACE1(name, a) ((void)(a))
#define TRACE2(name, a, b) ((void)(a), (void)(b))
#define TRACE3(name, a, b, c) ((void)(a), (void)(b), (void)(c))
#define TRACE4(name, a, b, c, d) ((void)(a), (void)(b), (void)(c), (void)(d))
#endif

/* One per file that logs: LOG_CATEGORY(qcow2); */
struct log_category {
    const char *name;
    int state; /* 0 not looked up yet, 1 off, 2 on; relaxed atomics */
};
#define LOG_CATEGORY(n) static struct log_category log_category_ = { .name = #n }

bool log_category_on(struct log_category *category);
void log_print(struct log_category *category, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define log_debug(...) \
    do { \
        if (__builtin_expect(log_category_on(&log_category_), 0)) \
            log_print(&log_category_, __VA_ARGS__); \
    } while (0)
