/* Bytes for Helium (Cortex-M55, M85), or the same in C. VMLADAVA multiplies 16 signed bytes and adds the products to a
 * register. Activations are therefore less by 128, for which biases account. */
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1) != 0
#define HAVE_HELIUM 1
#include <arm_mve.h>
#else
#define HAVE_HELIUM 0
#endif

#if defined(__GNUC__) && !defined(__clang__) /* in another order, the loads of sums of products need more registers than there are */
#define STORES_WITH_HELIUM __attribute__((noinline, noclone, optimize("no-auto-inc-dec")))
#define WITH_HELIUM \
    __attribute__((noinline, noclone, optimize("no-schedule-insns", "no-auto-inc-dec", "no-tree-slp-vectorize")))
#else
#define STORES_WITH_HELIUM
#define WITH_HELIUM
#endif

#if HAVE_HELIUM
/* The zero point plus RNE(a / 2^16) in even places, and of b in odd ones. A tie is first rounded up, and made even if it is
 * odd. */
static INLINED int16x8_t helium_rounded(int32x4_t a, int32x4_t b, int32_t zero)
{
    const int16x8_t up = vrshrntq_n_s32(vreinterpretq_s16_s32(vrshrq_n_s32(a, 16)), b, 16);
    const int16x8_t fraction = vmovntq_s32(vreinterpretq_s16_s32(a), b);
    const uint16x8_t is_tie = vshrq_n_u16(vreinterpretq_u16_s16(vabsq_s16(fraction)), 15); /* only -2^15 stays negative */

    return vqaddq_n_s16(vbicq_s16(up, vreinterpretq_s16_u16(is_tie)), (int16_t)zero);
}
#endif

/* Subtract 128 from `count` bytes. What follows in the last 16 has no meaning. */
static inline void helium_bytes(const uint8_t *x, int32_t count, int8_t *to)
{
#if HAVE_HELIUM
    const uint8x16_t sign = vdupq_n_u8(128);

    for (; count >= 16; count -= 16, x += 16, to += 16)
        vstrbq_s8(to, vreinterpretq_s8_u8(veorq_u8(vldrbq_u8(x), sign)));
    if (count > 0)
        vstrbq_s8(to, vreinterpretq_s8_u8(veorq_u8(vldrbq_z_u8(x, vctp8q((uint32_t)count)), sign)));
#else
    for (; count > 0; count -= 16, x += 16, to += 16)
        for (int32_t i = 0; i < 16; i++)
            to[i] = (int8_t)(i < count ? x[i] - 128 : -128);
#endif
}

/* Copy 16 bytes. */
static INLINED void helium_copy(const int8_t *x, int8_t *to)
{
#if HAVE_HELIUM
    vstrbq_s8(to, vldrbq_s8(x));
#else
    memcpy(to, x, 16);
#endif
}

/* Fill `count` bytes, and up to 15 more. */
static inline void helium_fill(int8_t *to, int32_t count, int32_t value)
{
#if HAVE_HELIUM
    for (const int8_t *const end = to + count; to < end; to += 16)
        vstrbq_s8(to, vdupq_n_s8((int8_t)value));
#else
    memset(to, value, (size_t)count);
#endif
}

/* Subtract 128 from 16 of each `apart` bytes. */
static inline void helium_columns_of(const uint8_t *x, int32_t count, int32_t apart, int8_t *to)
{
    for (; count > 0; count--, x += apart, to += 16) {
#if HAVE_HELIUM
        vstrbq_s8(to, vreinterpretq_s8_u8(veorq_u8(vldrbq_u8(x), vdupq_n_u8(128))));
#else
        for (int32_t i = 0; i < 16; i++)
            to[i] = (int8_t)(x[i] - 128);
#endif
    }
}
