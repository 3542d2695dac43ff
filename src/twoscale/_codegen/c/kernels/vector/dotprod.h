/* SDOT (Armv8.2 and later) adds four products to each lane, with four activations of one pixel from a lane. */
#define PIXELS 4 /* of a tile: 16 accumulators of 32 registers */

typedef int8x16_t activations; /* less 128 */

INLINE activations activations_of(uint8x16_t bytes)
{
    return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128)));
}

/* Add the products of one word, whose activations are in a lane of x. */
#define ADD_WORD(lane) \
    { \
        const int8x16x4_t four = vld1q_s8_x4(w); \
        int8x16_t some[4]; \
        EACH some[i] = unpacked(four.val[i], PART(lane, bits), bits); \
        EACH_PIXEL \
        EACH acc[n].at[i] = vdotq_laneq_s32(acc[n].at[i], some[i], x[n], lane); \
        if (ENDS_WORD(lane, bits)) \
            w += at->stride; \
        IN_ORDER \
    }

/* Add the dot products of 1 or PIXELS windows with the weights of 16 channels. */
INLINE void add_windows(v16i *acc, const window *at, const uint8_t *const *from, const int8_t *w, int32_t pixels,
                        int32_t bits)
{
    for (int32_t run = 0; run < at->runs; run++) {
        ptrdiff_t offset = at->start[run * at->step];
        int32_t words = WORDS(at, bits);

        for (; words >= 4; words -= 4, offset += 16) {
            activations x[PIXELS];

            EACH_PIXEL x[n] = activations_of(vld1q_u8(from[n] + offset));
            ADD_WORD(0)
            ADD_WORD(1)
            ADD_WORD(2)
            ADD_WORD(3)
        }
        if (words > 0) {
            activations x[PIXELS];

            EACH_PIXEL x[n] = activations_of(vld1q_u8(from[n] + offset));
            ADD_WORD(0)
            if (words > 1)
                ADD_WORD(1)
            if (words > 2)
                ADD_WORD(2)
        }
    }
}

/* Add four products of taps to each lane. */
INLINE int32x4_t add_taps(int32x4_t acc, activations x, int8x16_t w)
{
    return vdotq_s32(acc, x, w);
}
