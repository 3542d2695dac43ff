/* Sums of products of 16 signed bytes at a time with Helium (Cortex-M55, M85), or the same in C. Activations are less by 128,
 * for which the biases account. */
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1) != 0
#define HAVE_HELIUM 1
#include <arm_mve.h>
#else
#define HAVE_HELIUM 0
#endif

#if defined(__GNUC__) && !defined(__clang__)
#define WITH_HELIUM __attribute__((noinline, noclone, optimize("no-schedule-insns", "no-auto-inc-dec")))
#else
#define WITH_HELIUM
#endif

#if HAVE_HELIUM
#define HELIUM_WINDOW(a, b, place) \
    { \
        const int8x16_t bytes = vldrbq_s8(x + (place)); \
\
        a = vmladavaq_s8(a, u, bytes); \
        b = vmladavaq_s8(b, v, bytes); \
    }

/* The sums of three windows and two channels: sums[window * apart + channel]. Windows, and channels, take turns in x and w
 * with 16 bytes each, `count` times. */
static WITH_HELIUM void helium_tile(const int8_t *x, const int8_t *w, int32_t count, const int32_t bias[2], int32_t *sums,
                                    int32_t apart)
{
    int32_t a0 = bias[0], a1 = a0, a2 = a0, b0 = bias[1], b1 = b0, b2 = b0;

    for (; count > 0; count--) {
        const int8x16_t u = vldrbq_s8(w), v = vldrbq_s8(w + 16);

        HELIUM_WINDOW(a0, b0, 0)
        HELIUM_WINDOW(a1, b1, 16)
        HELIUM_WINDOW(a2, b2, 32)
        x += 48;
        w += 32;
    }
    sums[0] = a0;
    sums[1] = b0;
    sums[apart] = a1;
    sums[apart + 1] = b1;
    sums[2 * apart] = a2;
    sums[2 * apart + 1] = b2;
}
#else
static void helium_tile(const int8_t *x, const int8_t *w, int32_t count, const int32_t bias[2], int32_t *sums, int32_t apart)
{
    for (int32_t window = 0; window < 3; window++) {
        for (int32_t channel = 0; channel < 2; channel++) {
            int32_t sum = bias[channel];

            for (int32_t k = 0; k < count; k++)
                for (int32_t i = 0; i < 16; i++)
                    sum += x[48 * k + 16 * window + i] * w[32 * k + 16 * channel + i];
            sums[window * apart + channel] = sum;
        }
    }
}
#endif

/* Subtract 128 from `count` bytes and write them 16 at a time, `apart` bytes apart, the rest of the last 16 with weights of zero;
 * returns the place after them. */
static inline int8_t *helium_bytes(const uint8_t *x, int32_t count, int8_t *to, int32_t apart)
{
#if HAVE_HELIUM
    const uint8x16_t sign = vdupq_n_u8(128);

    for (int32_t n = count >> 4; n > 0; n--, x += 16, to += apart)
        vstrbq_s8(to, vreinterpretq_s8_u8(veorq_u8(vldrbq_u8(x), sign)));
    if ((count & 15) > 0) {
        vstrbq_s8(to, vreinterpretq_s8_u8(veorq_u8(vldrbq_z_u8(x, vctp8q((uint32_t)count & 15)), sign)));
        to += apart;
    }
#else
    for (; count > 0; count -= 16, x += 16, to += apart)
        for (int32_t i = 0; i < 16; i++)
            to[i] = (int8_t)(i < count ? x[i] - 128 : 0);
#endif
    return to;
}
