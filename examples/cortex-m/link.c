/* The board's part of NAME_link.h for the boards of the Makefile: a UART without interrupts, and the cycle counter of the core
 * where it has one. QEMU's cores have none that runs.
 */
#include "net_link.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))

#if defined(__ARM_ARCH_6M__) /* the nRF51 of a micro:bit */
#define UART 0x40002000u
#define WAITS 400000u

static void start(void)
{
    REGISTER(UART + 0x500) = 4; /* ENABLE */
    REGISTER(UART + 0x000) = 1; /* STARTRX */
    REGISTER(UART + 0x008) = 1; /* STARTTX */
}

static int has_byte(void)
{
    return REGISTER(UART + 0x108) != 0; /* RXDRDY */
}

static int take_byte(void)
{
    REGISTER(UART + 0x108) = 0;
    return (int)(REGISTER(UART + 0x518) & 255u); /* RXD */
}

void net_link_put(uint8_t byte)
{
    REGISTER(UART + 0x11C) = 0; /* TXDRDY */
    REGISTER(UART + 0x51C) = byte;
    while (REGISTER(UART + 0x11C) == 0) {
    }
}
#else /* the CMSDK UART of Arm's MPS2 and MPS3 */
#ifndef UART
#define UART 0x40004000u
#endif
#define WAITS 4000000u

static void start(void)
{
    REGISTER(UART + 0x10) = 16; /* BAUDDIV */
    REGISTER(UART + 0x08) = 3;  /* CTRL: send and receive */
}

static int has_byte(void)
{
    return (REGISTER(UART + 0x04) & 2u) != 0; /* STATE: received */
}

static int take_byte(void)
{
    return (int)(REGISTER(UART + 0x00) & 255u); /* DATA */
}

void net_link_put(uint8_t byte)
{
    while ((REGISTER(UART + 0x04) & 1u) != 0) { /* STATE: not sent yet */
    }
    REGISTER(UART + 0x00) = byte;
}
#endif

int net_link_get(void)
{
    for (uint32_t wait = 0; wait < WAITS; wait++)
        if (has_byte())
            return take_byte();
    return -1;
}

uint32_t net_link_cycles(void)
{
#if defined(__ARM_ARCH_6M__)
    return 0;
#else
    return REGISTER(0xE0001004u); /* DWT_CYCCNT */
#endif
}

int main(void)
{
#if !defined(__ARM_ARCH_6M__)
    REGISTER(0xE000EDFCu) |= 1u << 24; /* DEMCR: TRCENA */
    REGISTER(0xE0001000u) |= 1u;       /* DWT_CTRL: CYCCNTENA */
#endif
    start();
    for (;;)
        net_link_serve();
}
