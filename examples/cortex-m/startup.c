/* The least that a Cortex-M program needs before main: a vector table, initialized memory, and a way to end.
 *
 * printf and the exit status go through semihosting to the debugger or to QEMU (link with --specs=rdimon.specs).
 * For a product, leave semihosting out: nothing in an exported network needs it.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern uint8_t data_start[], data_end[], data_load[], bss_start[], bss_end[], stack_top[];
extern int main(void);
extern void initialise_monitor_handles(void);
void systick_handler(void);

void reset_handler(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: coprocessors 10 and 11, which are floating point and Helium */
    __asm__ volatile("dsb\nisb");
#endif
    memcpy(data_start, data_load, (size_t)(data_end - data_start));
    memset(bss_start, 0, (size_t)(bss_end - bss_start));
    initialise_monitor_handles();
    exit(main());
}

/* Faults end the run with an error, where a product would restart. */
void fault_handler(void)
{
    _Exit(70);
}

/* counter.c has another. */
__attribute__((weak)) void systick_handler(void)
{
}

__attribute__((section(".vectors"), used)) static const uintptr_t vectors[16] = {
    (uintptr_t)stack_top,
    (uintptr_t)reset_handler,
    (uintptr_t)fault_handler, /* NMI */
    (uintptr_t)fault_handler, /* hard fault */
    (uintptr_t)fault_handler, /* memory management fault */
    (uintptr_t)fault_handler, /* bus fault */
    (uintptr_t)fault_handler, /* usage fault */
    0, 0, 0, 0, 0, 0, 0, 0,
    (uintptr_t)systick_handler,
};
