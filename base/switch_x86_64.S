/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Context switch for x86-64 (System V ABI 3.2.1: a call keeps rbx, rbp, r12 to r15, mxcsr's control bits and the x87
 * control word). Saved on the stack, from the stack pointer up:
 *     0 mxcsr (4), x87 control word (2), pad   8 r15   16 r14   24 r13   32 r12   40 rbx   48 rbp   56 return address
 * tests/gdb/vmm-gdb.py reads rbp and the return address from here.
 */
    .text

/* void co_asm_switch(void **save_sp [rdi], void *to_sp [rsi]) */
    .globl co_asm_switch
    .hidden co_asm_switch
    .type co_asm_switch, @function
    .p2align 4
co_asm_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    stmxcsr (%rsp)
    fnstcw 4(%rsp)
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    ldmxcsr (%rsp)
    fldcw 4(%rsp)
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size co_asm_switch, . - co_asm_switch

/* First return address of a coroutine: entry [r12] (co [r13]). The stack is aligned to 16 here. */
    .globl co_asm_entry
    .hidden co_asm_entry
    .type co_asm_entry, @function
    .p2align 4
co_asm_entry:
    .cfi_startproc
    .cfi_undefined rip
    movq %r13, %rdi
    xorl %ebp, %ebp
    call *%r12
    ud2
    .cfi_endproc
    .size co_asm_entry, . - co_asm_entry

    .section .note.GNU-stack, "", @progbits
