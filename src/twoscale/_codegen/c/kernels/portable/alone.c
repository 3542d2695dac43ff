#if defined(__GNUC__)
#define ALONE __attribute__((noinline)) /* if inlined, the loop would run out of registers */
#else
#define ALONE
#endif
