# SPDX-License-Identifier: LGPL-2.1-or-later
"""gdb helper: `vmm coroutines` prints the stack of every coroutine of every loop, `vmm loops` what each loop has in
flight. Works on a live process and on a core file, for it only reads memory.

    gdb -p PID -x tests/gdb/vmm-gdb.py -ex 'vmm coroutines'

A sleeping coroutine's registers lie on its own stack, where switch_x86_64.S or switch_aarch64.S put them (with
ucontext: in its struct co). From there the chain of frame pointers is followed: the tree is built with
-fno-omit-frame-pointer. A coroutine that runs is on its thread's own stack: see `thread apply all backtrace`.
"""

import gdb


def entries(head, type_name, member):
    """The structs on an intrusive list (base/list.h)."""
    struct = gdb.lookup_type(type_name)
    offset = next(f.bitpos // 8 for f in struct.fields() if f.name == member)
    node = head["next"]
    while node != head.address:
        yield (node.cast(gdb.lookup_type("char").pointer()) - offset).cast(struct.pointer()).dereference()
        node = node.dereference()["next"]


def loops():
    return entries(gdb.parse_and_eval("loop_registry")["loops"], "struct loop", "link")


def word(address):
    pointer = gdb.lookup_type("unsigned long").pointer()
    return int(gdb.Value(address).cast(pointer).dereference())


def architecture():
    try:
        return gdb.selected_frame().architecture().name()
    except gdb.error:
        return gdb.selected_inferior().architecture().name()


def saved_registers(co):
    """(program counter, frame pointer) of a sleeping coroutine."""
    context = co["context"]
    arm = "aarch64" in architecture()
    if context.type.fields()[0].name == "uc":
        machine = context["uc"]["uc_mcontext"]
        if arm:
            return int(machine["pc"]), int(machine["regs"][29])
        return int(machine["gregs"][16]), int(machine["gregs"][10])  # REG_RIP, REG_RBP
    sp = int(context["sp"])
    if arm:
        return word(sp + 88), word(sp + 80)  # x30, x29
    return word(sp + 56), word(sp + 48)


def describe(pc):
    block = gdb.block_for_pc(pc)
    while block and not block.function:
        block = block.superblock
    name = block.function.name if block else None
    if name is None:
        text = gdb.execute("info symbol %#x" % pc, to_string=True).strip()
        name = text.split(" in section")[0] if "No symbol" not in text else "??"
    line = gdb.find_pc_line(pc - 1)
    where = " at %s:%d" % (line.symtab.filename, line.line) if line.symtab else ""
    return "%#018x in %s%s" % (pc, name, where)


def frames(co):
    low, high = int(co["stack"]), int(co["stack"]) + int(co["stack_size"])
    pc, fp = saved_registers(co)
    for _ in range(200):
        yield describe(pc)
        if not low <= fp <= high - 16:
            return
        following, pc = word(fp), word(fp + 8)
        if following <= fp and following != 0:
            yield "(the chain of frame pointers is broken)"
            return
        fp = following
        if pc == 0:
            return


class Vmm(gdb.Command):
    """Commands about the state of vmm's base: `vmm coroutines`, `vmm loops`."""

    def __init__(self):
        super().__init__("vmm", gdb.COMMAND_STATUS, prefix=True)


class VmmCoroutines(gdb.Command):
    """Prints the stack of every coroutine, by loop."""

    def __init__(self):
        super().__init__("vmm coroutines", gdb.COMMAND_STATUS)

    def invoke(self, argument, from_tty):
        count = 0
        for loop in loops():
            for co in entries(loop["coroutines"], "struct co", "link"):
                count += 1
                state = "asleep" if co["asleep"] else "running"
                started_as = describe(int(co["fn"])).split(" in ")[1].split(" at ")[0]
                print("coroutine %#x of loop %#x, %s, started as %s(%#x)" % (
                    int(co.address), int(loop.address), state, started_as, int(co["arg"])))
                if co["asleep"]:
                    for number, text in enumerate(frames(co)):
                        print("    #%-2d %s" % (number, text))
        print("%d coroutines" % count)


class VmmLoops(gdb.Command):
    """Prints what each loop has in flight."""

    def __init__(self):
        super().__init__("vmm loops", gdb.COMMAND_STATUS)

    def invoke(self, argument, from_tty):
        for loop in loops():
            print("loop %#x: %s, %d I/O in flight, %d in the worker pool, %d timers, %d coroutines, requests of %d disks" % (
                int(loop.address), "io_uring" if loop["has_ring"] else "poll", int(loop["in_flight"]),
                int(loop["pool_works"]), int(loop["timer_count"]),
                sum(1 for _ in entries(loop["coroutines"], "struct co", "link")),
                sum(1 for _ in entries(loop["epoch"]["pinned"], "struct epoch_record", "link"))))


Vmm()
VmmCoroutines()
VmmLoops()
