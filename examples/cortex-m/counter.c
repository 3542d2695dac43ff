/* What the self-test counts on a board: cycles of the core, or instructions under QEMU.
 *
 * Cortex-M3 and larger cores have a cycle counter, DWT_CYCCNT. A Cortex-M0+ has only SysTick, which counts down from 2^24; its
 * interrupt counts the rounds. QEMU emulates SysTick alone. With -icount shift=5 an instruction takes 32 ns of QEMU's clock, so
 * that ticks give the instructions; QEMU_CLOCK is the board's clock in Hz.
 */
#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SYSTICK 0xE000E010u

uint32_t board_counter(void);
void systick_handler(void);

static volatile uint32_t rounds;

void systick_handler(void)
{
    rounds++;
}

#if defined(QEMU_CLOCK) || defined(__ARM_ARCH_6M__)
static uint64_t ticks(void)
{
    uint32_t round, left;

    if ((REGISTER(SYSTICK) & 1u) == 0) { /* CSR: not running */
        REGISTER(SYSTICK + 4) = 0xFFFFFFu; /* RVR: from where it counts */
        REGISTER(SYSTICK + 8) = 0;         /* CVR: begin there */
        REGISTER(SYSTICK) = 7;             /* CSR: the core's clock, interrupt, run */
    }
    do {
        round = rounds;
        left = REGISTER(SYSTICK + 8);
    } while (round != rounds);
    return ((uint64_t)round << 24) + (0xFFFFFFu - left);
}

uint32_t board_counter(void)
{
#ifdef QEMU_CLOCK
    return (uint32_t)(ticks() * (1000000000u / 32u) / QEMU_CLOCK);
#else
    return (uint32_t)ticks();
#endif
}
#else
uint32_t board_counter(void)
{
    REGISTER(0xE000EDFCu) |= 1u << 24; /* DEMCR: TRCENA */
    REGISTER(0xE0001000u) |= 1u;       /* DWT_CTRL: CYCCNTENA */
    return REGISTER(0xE0001004u);      /* DWT_CYCCNT */
}
#endif
