/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Context switch for aarch64 (AAPCS64 6.1: a call keeps x19 to x28, x29, sp, the low halves of v8 to v15, and fpcr).
 * Saved on the stack, from the stack pointer up, 8 bytes each:
 *     0 x19 … 9 x28   10 x29   11 x30   12 d8 … 19 d15   20 fpcr   21 pad
 * tests/gdb/vmm-gdb.py reads x29 and x30 from here.
 */
    .text

/* void co_asm_switch(void **save_sp [x0], void *to_sp [x1]) */
    .globl co_asm_switch
    .hidden co_asm_switch
    .type co_asm_switch, %function
    .p2align 4
co_asm_switch:
    hint #34 /* bti c */
    sub sp, sp, #176
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mrs x9, fpcr
    str x9, [sp, #160]
    mov x10, sp
    str x10, [x0]
    mov sp, x1
    ldr x9, [sp, #160]
    msr fpcr, x9
    ldp d14, d15, [sp, #144]
    ldp d12, d13, [sp, #128]
    ldp d10, d11, [sp, #112]
    ldp d8, d9, [sp, #96]
    ldp x29, x30, [sp, #80]
    ldp x27, x28, [sp, #64]
    ldp x25, x26, [sp, #48]
    ldp x23, x24, [sp, #32]
    ldp x21, x22, [sp, #16]
    ldp x19, x20, [sp, #0]
    add sp, sp, #176
    ret
    .size co_asm_switch, . - co_asm_switch

/* First return address of a coroutine: entry [x19] (co [x20]). */
    .globl co_asm_entry
    .hidden co_asm_entry
    .type co_asm_entry, %function
    .p2align 4
co_asm_entry:
    .cfi_startproc
    .cfi_undefined x30
    mov x0, x20
    mov x29, xzr
    mov x30, xzr
    blr x19
    brk #1
    .cfi_endproc
    .size co_asm_entry, . - co_asm_entry

    .section .note.GNU-stack, "", %progbits
