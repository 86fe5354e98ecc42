/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The context switch, and what the sanitizers must hear of it. x86-64 and aarch64 switch by switch_*.S: push the
 * registers that a call keeps, exchange stack pointers, pop. Elsewhere, or with -Dcoroutines=ucontext, swapcontext(3).
 *
 * Invariant: ASan and TSan are told before each switch, ASan again right after it on the other side, with nothing
 * instrumented in between that would touch the wrong stack.
 */
#include "coroutine_internal.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef CO_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CO_TSAN
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
#endif

/* ---- the bare switch ---- */

#ifdef CO_UCONTEXT

static void context_switch(struct co_context *from, struct co_context *to) { swapcontext(&from->uc, &to->uc); }

/* makecontext(3) passes ints: a pointer in two halves. */
static void context_entry(unsigned fn_high, unsigned fn_low, unsigned co_high, unsigned co_low)
{
    void (*entry)(struct co * co) = (void (*)(struct co *))(uintptr_t)((uint64_t)fn_high << 32 | fn_low);
    entry((struct co *)(uintptr_t)((uint64_t)co_high << 32 | co_low));
    abort();
}

static void context_init(struct co *co, void (*entry)(struct co *co))
{
    uint64_t fn = (uintptr_t)entry, arg = (uintptr_t)co;
    getcontext(&co->context.uc);
    co->context.uc.uc_stack.ss_sp = co->stack;
    co->context.uc.uc_stack.ss_size = co->stack_size;
    co->context.uc.uc_link = NULL;
    makecontext(&co->context.uc, (void (*)(void))context_entry, 4, (unsigned)(fn >> 32), (unsigned)fn,
                (unsigned)(arg >> 32), (unsigned)arg);
}

#else

/* switch_x86_64.S, switch_aarch64.S. The entry trampoline calls entry(co), which it finds in two kept registers. */
void co_asm_switch(void **save_sp, void *to_sp);
void co_asm_entry(void);

static void context_switch(struct co_context *from, struct co_context *to) { co_asm_switch(&from->sp, to->sp); }

/* Lays out what co_asm_switch pops. The frame pointer is 0: a walk up the frames ends here. */
static void context_init(struct co *co, void (*entry)(struct co *co))
{
    uint64_t *top = (uint64_t *)(void *)(co->stack + (co->stack_size & ~(size_t)15));
#if defined(__x86_64__)
    uint64_t *sp = top - 10; /* control words, r15, r14, r13, r12, rbx, rbp, return address; see switch_x86_64.S */
    uint32_t mxcsr;
    uint16_t x87;
    memset(sp, 0, 10 * sizeof(*sp));
    __asm__("stmxcsr %0" : "=m"(mxcsr));
    __asm__("fnstcw %0" : "=m"(x87));
    sp[0] = (uint64_t)x87 << 32 | mxcsr;
    sp[3] = (uintptr_t)co;    /* r13 */
    sp[4] = (uintptr_t)entry; /* r12 */
    sp[7] = (uintptr_t)co_asm_entry;
#else
    uint64_t *sp = top - 22; /* x19 … x30, d8 … d15, fpcr; see switch_aarch64.S */
    uint64_t fpcr;
    memset(sp, 0, 22 * sizeof(*sp));
    __asm__("mrs %0, fpcr" : "=r"(fpcr));
    sp[0] = (uintptr_t)entry;         /* x19 */
    sp[1] = (uintptr_t)co;            /* x20 */
    sp[11] = (uintptr_t)co_asm_entry; /* x30 */
    sp[20] = fpcr;
#endif
    co->context.sp = sp;
}

#endif

/* ---- with the sanitizers ---- */

void co_switch_prepare(struct co *co, void (*entry)(struct co *co))
{
    context_init(co, entry);
    co->fake_stack = NULL;
#ifdef CO_TSAN
    co->fiber = __tsan_create_fiber(0);
#endif
}

void co_switch_in(struct co *co)
{
#ifdef CO_TSAN
    co->back_fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(co->fiber, 0);
#endif
#ifdef CO_ASAN
    void *fake;
    __sanitizer_start_switch_fiber(&fake, co->stack, co->stack_size);
#endif
    context_switch(&co->back, &co->context);
#ifdef CO_ASAN
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
}

void co_switch_entered(struct co *co)
{
#ifdef CO_ASAN
    __sanitizer_finish_switch_fiber(co->fake_stack, &co->back_stack, &co->back_stack_size);
#endif
}

void co_switch_out(struct co *co)
{
#ifdef CO_TSAN
    __tsan_switch_to_fiber(co->back_fiber, 0);
#endif
#ifdef CO_ASAN
    __sanitizer_start_switch_fiber(&co->fake_stack, co->back_stack, co->back_stack_size);
#endif
    context_switch(&co->context, &co->back);
    co_switch_entered(co);
}

void co_switch_out_last(struct co *co)
{
#ifdef CO_TSAN
    __tsan_switch_to_fiber(co->back_fiber, 0);
#endif
#ifdef CO_ASAN
    __sanitizer_start_switch_fiber(NULL, co->back_stack, co->back_stack_size); /* NULL: it will not come back */
#endif
    context_switch(&co->context, &co->back);
    abort();
}

void co_switch_forget(struct co *co)
{
#ifdef CO_TSAN
    __tsan_destroy_fiber(co->fiber);
    co->fiber = NULL;
#endif
}
