/* SMULL, SMLAL and SADALP: what all AArch64 processors have. Two products are added in 16 bits, which is exact, since
 * 2 * 128 * 127 < 2^15, unless both weights are -128. */
#define PIXELS 2 /* of a tile: 16 accumulators of 32 registers */

typedef int8x16_t activations; /* less 128 */

INLINE activations activations_of(uint8x16_t bytes)
{
    return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128)));
}

/* Four bytes in each lane. */
#define LANE(x, lane) vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x), lane))

/* Add the products of the first two of four channels, or of the last two; two sums for each. */
INLINE int32x4_t add_word(int32x4_t acc, activations x, int8x16_t w, int32_t last)
{
    return vpadalq_s16(acc, last ? vmull_high_s8(w, x) : vmull_s8(vget_low_s8(w), vget_low_s8(x)));
}

/* The same for two words. */
INLINE int32x4_t add_words(int32x4_t acc, int8x16_t x, int8x16_t next_x, int8x16_t w, int8x16_t next_w, int32_t last)
{
#ifdef REACHES_MINUS_128
    return add_word(add_word(acc, x, w, last), next_x, next_w, last);
#else
    const int16x8_t first = last ? vmull_high_s8(w, x) : vmull_s8(vget_low_s8(w), vget_low_s8(x));

    return vpadalq_s16(acc, last ? vmlal_high_s8(first, next_w, next_x)
                                 : vmlal_s8(first, vget_low_s8(next_w), vget_low_s8(next_x)));
#endif
}

#define ADD_TWO_WORDS(lane, next_lane) \
    { \
        int8x16_t a[PIXELS], b[PIXELS]; \
        EACH_PIXEL \
        { \
            a[n] = LANE(x[n], lane); \
            b[n] = LANE(x[n], next_lane); \
        } \
        UNROLL \
        for (int32_t i = 0; i < 4; i += 2) { \
            const int8_t *const next_w = bits == 8 ? w + at->stride : w; \
            const int8x16_t four[2] = {unpacked(vld1q_s8(w + 16 * i), PART(lane, bits), bits), \
                                       unpacked(vld1q_s8(w + 16 * i + 16), PART(lane, bits), bits)}; \
            const int8x16_t second[2] = {unpacked(vld1q_s8(next_w + 16 * i), PART(next_lane, bits), bits), \
                                         unpacked(vld1q_s8(next_w + 16 * i + 16), PART(next_lane, bits), bits)}; \
            IN_ORDER \
            UNROLL \
            for (int32_t k = 0; k < 2; k++) { \
                EACH_PIXEL \
                { \
                    int32x4_t *const to = sum[n] + 2 * (i + k); \
                    to[0] = add_words(to[0], a[n], b[n], four[k], second[k], 0); \
                    to[1] = add_words(to[1], a[n], b[n], four[k], second[k], 1); \
                } \
            } \
        } \
        if (ENDS_WORD(next_lane, bits)) \
            w += (bits == 8 ? 2 : 1) * at->stride; \
    }
/* Four words of weights that fit 4 bits: 16 bits hold the sums of their products, 4 * 128 * 8 at most. */
#define ADD_FOUR_WORDS \
    { \
        int8x16_t a[PIXELS][4]; \
        EACH_PIXEL \
        { \
            a[n][0] = LANE(x[n], 0); \
            a[n][1] = LANE(x[n], 1); \
            a[n][2] = LANE(x[n], 2); \
            a[n][3] = LANE(x[n], 3); \
        } \
        EACH \
        { \
            int8x16_t four[4]; \
            UNROLL \
            for (int32_t k = 0; k < 4; k++) \
                four[k] = unpacked(vld1q_s8(w + k / (8 / bits) * at->stride + 16 * i), PART(k, bits), bits); \
            EACH_PIXEL \
            { \
                int16x8_t low = vmull_s8(vget_low_s8(four[0]), vget_low_s8(a[n][0])); \
                int16x8_t high = vmull_high_s8(four[0], a[n][0]); \
                UNROLL \
                for (int32_t k = 1; k < 4; k++) { \
                    low = vmlal_s8(low, vget_low_s8(four[k]), vget_low_s8(a[n][k])); \
                    high = vmlal_high_s8(high, four[k], a[n][k]); \
                } \
                sum[n][2 * i] = vpadalq_s16(sum[n][2 * i], low); \
                sum[n][2 * i + 1] = vpadalq_s16(sum[n][2 * i + 1], high); \
                __asm__ volatile("" : "+w"(sum[n][2 * i]), "+w"(sum[n][2 * i + 1])::"memory"); /* as IN_ORDER */ \
            } \
        } \
        w += 4 * bits / 8 * at->stride; \
    }
#define ADD_LAST_WORD(lane) \
    { \
        int8x16_t a[PIXELS]; \
        EACH_PIXEL a[n] = LANE(x[n], lane); \
        EACH \
        { \
            const int8x16_t four = vld1q_s8(w + 16 * i); \
            EACH_PIXEL \
            { \
                sum[n][2 * i] = add_word(sum[n][2 * i], a[n], four, 0); \
                sum[n][2 * i + 1] = add_word(sum[n][2 * i + 1], a[n], four, 1); \
            } \
        } \
        w += at->stride; \
    }

/* Add the dot products of 1 or PIXELS windows with the weights of 16 channels. */
INLINE void add_windows(v16i *acc, const window *at, const uint8_t *const *from, const int8_t *w, int32_t pixels,
                        int32_t bits)
{
    int32x4_t sum[PIXELS][8];

    EACH_PIXEL
    EACH sum[n][2 * i] = sum[n][2 * i + 1] = vdupq_n_s32(0);
    for (int32_t run = 0; run < at->runs; run++) {
        ptrdiff_t offset = at->start[run * at->step];
        int32_t words = WORDS(at, bits);

        for (; words >= 4; words -= 4, offset += 16) {
            activations x[PIXELS];

            EACH_PIXEL x[n] = activations_of(vld1q_u8(from[n] + offset));
            if (at->small) {
                ADD_FOUR_WORDS
            } else {
                ADD_TWO_WORDS(0, 1)
                ADD_TWO_WORDS(2, 3)
            }
        }
        if (words > 0) {
            activations x[PIXELS];

            EACH_PIXEL x[n] = activations_of(vld1q_u8(from[n] + offset));
            if (words == 1)
                ADD_LAST_WORD(0)
            else
                ADD_TWO_WORDS(0, 1)
            if (words == 3)
                ADD_LAST_WORD(2)
        }
    }
    EACH_PIXEL
    EACH acc[n].at[i] = vaddq_s32(acc[n].at[i], vpaddq_s32(sum[n][2 * i], sum[n][2 * i + 1]));
}

/* Add four products of taps to each lane. */
INLINE int32x4_t add_taps(int32x4_t acc, activations x, int8x16_t w)
{
    const int32x4_t low = add_word(vdupq_n_s32(0), x, w, 0), high = add_word(vdupq_n_s32(0), x, w, 1);

    return vaddq_s32(acc, vpaddq_s32(low, high));
}
