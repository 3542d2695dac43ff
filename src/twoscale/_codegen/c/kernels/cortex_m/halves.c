/* Words of two 16-bit halves: the DSP extension of Cortex-M4, M7 and M33 multiplies both halves of two words at once and
 * adds the products. Other processors compute the same with the C below. */
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP == 1
#include <arm_acle.h>
#endif

/* sum + a.low * b.low + a.high * b.high, modulo 2^32. */
static inline int32_t add_products(int32_t a, int32_t b, int32_t sum)
{
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP == 1
    return __smlad(a, b, sum);
#else
    return (int32_t)((uint32_t)sum + (uint32_t)((int16_t)a * (int16_t)b) + (uint32_t)((a >> 16) * (b >> 16)));
#endif
}

/* The low byte of each half, with its sign. */
static inline int32_t low_bytes(int32_t a)
{
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP == 1
    return __sxtb16(a);
#else
    return (int32_t)(((uint32_t)(int8_t)a & 0xffffu) | (uint32_t)(int8_t)(a >> 16) << 16);
#endif
}

/* Clamp to a constant number of bits. */
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP == 1 && defined(__GNUC__)
#define clamped(value, bits) ((int32_t)__builtin_arm_ssat(value, bits)) /* __ssat warns of conversions in some headers */
#else
#define clamped(value, bits) clamped_between(value, -((int32_t)1 << ((bits)-1)), ((int32_t)1 << ((bits)-1)) - 1)
static inline int32_t clamped_between(int32_t value, int32_t lo, int32_t hi)
{
    return value < lo ? lo : value > hi ? hi : value;
}
#endif

/* Four bytes as a number, the first the lowest. */
static inline uint32_t four_bytes(const uint8_t *x)
{
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP == 1 && !defined(__ARM_BIG_ENDIAN)
    uint32_t word;

    memcpy(&word, x, 4);
    return word;
#else
    return x[0] | (uint32_t)x[1] << 8 | (uint32_t)x[2] << 16 | (uint32_t)x[3] << 24;
#endif
}
