/* The first and third byte of a word. Read from memory, since a constant would not stay in a register. */
static const volatile uint32_t even_bytes = 0x00ff00ffu;

#if defined(__clang__)
#define IN_REGISTERS __attribute__((noinline))
#elif defined(__GNUC__) /* the loop needs all registers: inlined, or with loads in another order, it spills */
#define IN_REGISTERS __attribute__((noinline, noclone, optimize("no-schedule-insns")))
#else
#define IN_REGISTERS
#endif
