//! Assembly: where the boot processor and the second vCPU begin, their stacks, and the functions of memory that a compiler takes for granted.
//!
//! Both turn on what compiled code needs (SSE). The second vCPU begins in real mode, at a copy of the trampoline in low memory, and goes to long mode in
//! one step; its page tables, stack and function are written into the copy. None of the functions entered returns.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.start, "ax"
    .global start
start:
    cli
    leaq boot_stack_top(%rip), %rsp
    movq %cr0, %rax
    andl $0xfffffffb, %eax
    orl $2, %eax
    movq %rax, %cr0
    movq %cr4, %rax
    orl $0x600, %eax
    movq %rax, %cr4
    movq %rsi, %rdi
    call {begin}

    .global trampoline_start, trampoline_end, trampoline_tables, trampoline_stack, trampoline_entry
    .global second_stack_top
trampoline_start:
    .code16
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl (trampoline_gdtr - trampoline_start)
    movl %cr4, %eax
    orl $0x620, %eax
    movl %eax, %cr4
    movl (trampoline_tables - trampoline_start), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffffb, %eax
    orl $0x80000003, %eax
    movl %eax, %cr0
    ljmpl $8, $({trampoline} + trampoline_long - trampoline_start)
    .code64
trampoline_long:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movq trampoline_stack(%rip), %rsp
    movq trampoline_entry(%rip), %rax
    call *%rax
    .balign 8
trampoline_gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
trampoline_gdtr:
    .word 23
    .long {trampoline} + trampoline_gdt - trampoline_start
    .balign 8
trampoline_tables:
    .quad 0
trampoline_stack:
    .quad 0
trampoline_entry:
    .quad 0
trampoline_end:

    .section .bss
    .balign 16
    .skip 0x10000
boot_stack_top:
    .skip 0x10000
second_stack_top:

    .section .text
    .global memcpy, memmove, memset, memcmp, bcmp
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
memmove:
    movq %rdi, %rax
    movq %rdx, %rcx
    movq %rdi, %r8
    subq %rsi, %r8
    cmpq %rdx, %r8
    jae 2f
    std
    leaq -1(%rdi,%rdx), %rdi
    leaq -1(%rsi,%rdx), %rsi
    rep movsb
    cld
    ret
2:  rep movsb
    ret
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret
memcmp:
bcmp:
    xorl %eax, %eax
    movq %rdx, %rcx
    cmpb %al, %al
    repe cmpsb
    je 3f
    movzbl -1(%rdi), %eax
    movzbl -1(%rsi), %ecx
    subl %ecx, %eax
3:  ret
    "#,
    begin = sym crate::cpu::enter,
    trampoline = const crate::cpu::TRAMPOLINE,
    options(att_syntax)
);
