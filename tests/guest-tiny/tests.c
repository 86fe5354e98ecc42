/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The list of tests, by the name that test= chooses. */
#include "tiny.h"

#define TESTS(X) \
    X(hello) \
    X(reset_port) \
    X(reset_keyboard) \
    X(triple_fault) \
    X(exit_port) \
    X(panic_port) \
    X(board) \
    X(echo) \
    X(flood) \
    X(power_button) \
    X(boot_params) \
    X(acpi) \
    X(rtc) \
    X(cpuid) \
    X(processors) \
    X(pci_access) \
    X(pci_bars) \
    X(interrupts) \
    X(interrupt_pin) \
    X(increments) \
    X(event_index) \
    X(races) \
    X(blk_basic) \
    X(blk_layouts) \
    X(blk_limits) \
    X(blk_discard) \
    X(blk_ranges) \
    X(blk_used_length) \
    X(blk_indirect) \
    X(blk_indirect_last) \
    X(blk_queues) \
    X(blk_write_cache) \
    X(blk_busy) \
    X(negotiation) \
    X(negotiation_refused) \
    X(malformed) \
    X(malformed_memory) \
    X(reset_busy) \
    X(reset_races) \
    X(write_forever) \
    X(read_back)

#define DECLARE(name) void test_##name(void);
#define ENTRY(name) { #name, test_##name },
TESTS(DECLARE)
const struct test tests[] = { TESTS(ENTRY){ 0 } };
