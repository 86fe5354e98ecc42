/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* PCI configuration space through ports 0xcf8 and 0xcfc. */
#include "tiny.h"

uint32_t pci_read(unsigned devfn, unsigned offset, unsigned size)
{
    outl(0xcf8, 0x80000000u | devfn << 8 | (offset & 0xfc));
    uint16_t port = (uint16_t)(0xcfc + (offset & 3));
    return size == 1 ? inb(port) : size == 2 ? inw(port) : inl(port);
}

void pci_write(unsigned devfn, unsigned offset, unsigned size, uint32_t value)
{
    outl(0xcf8, 0x80000000u | devfn << 8 | (offset & 0xfc));
    uint16_t port = (uint16_t)(0xcfc + (offset & 3));
    if (size == 1)
        outb(port, (uint8_t)value);
    else if (size == 2)
        outw(port, (uint16_t)value);
    else
        outl(port, value);
}

int pci_find(uint16_t vendor, uint16_t device, unsigned n)
{
    for (unsigned devfn = 0; devfn < 256; devfn++)
        if (pci_read(devfn, 0, 4) == ((uint32_t)device << 16 | vendor) && n-- == 0)
            return (int)devfn;
    return -1;
}

unsigned pci_capability(unsigned devfn, uint8_t type, unsigned after)
{
    unsigned at = after ? pci_read(devfn, after + 1, 1) : pci_read(devfn, 0x34, 1);
    for (unsigned guard = 0; at && guard < 48; guard++, at = pci_read(devfn, at + 1, 1))
        if (pci_read(devfn, at, 1) == type)
            return at;
    return 0;
}

uint64_t pci_bar(unsigned devfn, unsigned bar)
{
    uint32_t low = pci_read(devfn, 0x10 + bar * 4, 4);
    uint64_t address = low & ~15u;
    if ((low & 6) == 4)
        address |= (uint64_t)pci_read(devfn, 0x14 + bar * 4, 4) << 32;
    return address;
}
