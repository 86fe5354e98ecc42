/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How a tiny guest starts: it looks like a Linux kernel (boot protocol 2.12), so both vmm and QEMU load it by -kernel. vmm
 * enters at the 64-bit entry point (1 MiB + 0x200), QEMU's firmware at the real-mode one, which goes on through 32-bit
 * mode. All end in main64 with the kernel command line's address in rdi, the boot parameters' in rsi. Other processors start at ap_start, copied to 0x8000.
 */
#define CODE64 0x08
#define CODE32 0x10
#define DATA 0x18
#define AP_PAGE 0x8000

    .section .setup, "a"
    .org 0x1f1
    .byte 3               /* setup_sects */
    .word 0
    .long 0               /* syssize, filled in by the build */
    .word 0, 0, 0
    .word 0xaa55
    .byte 0xeb, real_mode - after_jump /* over the header, whose end it tells too */
after_jump:
    .ascii "HdrS"
    .word 0x20c           /* version */
    .long 0
    .word 0, 0
    .byte 0               /* type_of_loader */
    .byte 1               /* loadflags: LOADED_HIGH */
    .word 0
    .long 0x100000        /* code32_start */
    .long 0, 0            /* ramdisk */
    .long 0
    .word 0
    .byte 0, 0
    .long 0               /* cmd_line_ptr */
    .long 0x7fffffff      /* initrd_addr_max */
    .long 0x1000          /* kernel_alignment */
    .byte 0, 0            /* not relocatable */
    .word 1               /* xloadflags: XLF_KERNEL_64 */
    .long 2048            /* cmdline_size */
    .long 0
    .quad 0
    .long 0, 0
    .quad 0
    .quad 0x100000        /* pref_address */
    .long 0x400000        /* init_size */
    .long 0

    .code16
real_mode:
    cli
    xorl %eax, %eax
    movw %ds, %ax
    shll $4, %eax
    movl %eax, %esi       /* where the setup sectors lie: the boot parameters */
    addl %eax, setup_gdtr + 2
    lgdtl setup_gdtr
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $CODE32, $0x100000

    .balign 8
setup_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf9b000000ffff, 0x00cf93000000ffff
setup_gdtr:
    .word 31
    .long setup_gdt

    .section .head, "ax"
    .code32
    .globl entry32
entry32:
    movw $DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $stack_top, %esp
    lgdtl gdtr
    /* 4 GiB one to one, 2 MiB pages */
    movl $page_tables, %edi
    xorl %eax, %eax
    movl $6 * 1024, %ecx
    rep stosl
    movl $page_tables + 0x1003, page_tables
    movl $4, %ecx
    movl $page_tables + 0x2003, %eax
    movl $page_tables + 0x1000, %edi
1:  movl %eax, (%edi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 1b
    movl $2048, %ecx
    movl $0x83, %eax
    movl $page_tables + 0x2000, %edi
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    call enter_long_mode
    ljmpl $CODE64, $common64

    /* Page tables are there; turns paging and long mode on. */
enter_long_mode:
    movl $page_tables, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    ret

    .org 0x200
    .code64
entry64:
    movl $stack_top, %esp
    lgdt gdtr
    /* Our own page tables here too: the other processors use them. The ones we came with map as much. */
    movl $page_tables, %edi
    xorl %eax, %eax
    movl $6 * 1024, %ecx
    rep stosl
    movq $page_tables + 0x1003, page_tables
    movl $page_tables + 0x2003, %eax
    movl $page_tables + 0x1000, %edi
    movl $4, %ecx
1:  movl %eax, (%rdi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 1b
    movl $2048, %ecx
    movl $0x83, %eax
    movl $page_tables + 0x2000, %edi
2:  movl %eax, (%rdi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    movl $page_tables, %eax
    movq %rax, %cr3
    pushq $CODE64
    pushq $common64
    lretq

common64:
    movw $DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    /* The memory that the image does not fill; not the page tables and the stack. */
    movl $bss_start, %edi
    movl $page_tables, %ecx
    subl %edi, %ecx
    shrl $3, %ecx
    xorl %eax, %eax
    rep stosq
    movl 0x228(%rsi), %edi
    xorl %ebp, %ebp
    call main64
3:  hlt
    jmp 3b

    .balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdtr:
    .word 31
    .quad gdt

    /* Another processor, in real mode at AP_PAGE. */
    .balign 16
    .globl ap_start, ap_end
    .code16
ap_start:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdtr - ap_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $CODE32, $ap32
ap_gdtr:
    .word 31
    .long gdt
ap_end:
    .code32
ap32:
    movw $DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $ap_stack_top, %esp
    call enter_long_mode
    ljmpl $CODE64, $ap64
    .code64
ap64:
    call ap_main
4:  hlt
    jmp 4b

    /* Interrupts and exceptions: all go to interrupt(frame). */
    .text
    .globl interrupt_stubs
    .balign 16
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
    .else
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr
interrupt_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    cld
    leaq 72(%rsp), %rdi
    pushq %rbp
    movq %rsp, %rbp
    andq $-16, %rsp
    call interrupt
    movq %rbp, %rsp
    popq %rbp
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

    .section .bss_last, "aw", @nobits
    .balign 4096
page_tables:
    .skip 6 * 4096
    .skip 16384
stack_top:
    .skip 16384
ap_stack_top:

    .section .note.GNU-stack, "", @progbits
