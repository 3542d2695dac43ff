/* USMMLA (Armv8.6 and later; Apple M2, Neoverse V1) multiplies eight unsigned activations of two pixels with eight weights of
 * two channels. */
#define PIXELS 4 /* of a tile: 16 accumulators of 32 registers */
#define UNSIGNED_ACTIVATIONS

typedef uint8x16_t activations;

INLINE activations activations_of(uint8x16_t bytes)
{
    return bytes;
}

/* Eight bytes of one pixel, then eight of another: the first of 16, or the last. */
INLINE uint8x16_t of_two(uint8x16_t a, uint8x16_t b, int32_t last)
{
    const uint64x2_t one = vreinterpretq_u64_u8(a), other = vreinterpretq_u64_u8(b);

    return vreinterpretq_u8_u64(last ? vzip2q_u64(one, other) : vzip1q_u64(one, other));
}

/* Eight weights of one channel, then of the next: of the first two of four channels, or the last two. */
INLINE int8x16_t channels_of(int8x16_t word, int8x16_t next_word, int32_t last)
{
    const int32x4_t a = vreinterpretq_s32_s8(word), b = vreinterpretq_s32_s8(next_word);

    return vreinterpretq_s8_s32(last ? vzip2q_s32(a, b) : vzip1q_s32(a, b));
}

/* Bytes for the weights of 16 channels in the order in which they are multiplied. Larger windows keep the order of all sets. */
#define ARRANGED_BYTES 40960

/* Arrange the weights of 16 channels: two words of two channels side by side. A word left over is followed by zeros. */
INLINE const int8_t *arrange(int8_t *to, const window *at, const int8_t *w, int32_t bits)
{
    const int8_t *const arranged = to;
    const int32_t all = WORDS(at, bits);

    if (at->runs * ((all + 1) / 2) * 128 > ARRANGED_BYTES)
        return NULL;
    for (int32_t run = 0; run < at->runs; run++)
        for (int32_t k = 0; k < all; k += 2) {
            const int32_t next = bits < 8 ? 0 : k + 1 < all ? at->stride : -1;

            for (int32_t i = 0; i < 4; i++, to += 32) {
                const int8x16_t word = unpacked(vld1q_s8(w + 16 * i), PART(k, bits), bits);
                const int8x16_t second = next < 0 ? vdupq_n_s8(0)
                                                  : unpacked(vld1q_s8(w + next + 16 * i), PART(k + 1, bits), bits);

                vst1q_s8(to, channels_of(word, second, 0));
                vst1q_s8(to + 16, channels_of(word, second, 1));
            }
            if (ENDS_WORD(k + 1, bits))
                w += next > 0 ? 2 * at->stride : at->stride;
        }
    return arranged;
}

#define EACH_TWO UNROLL for (int32_t n = 0; n < PIXELS / 2; n++)

/* Add the products of two words, or of one, whose second weights are `next_word`. */
#define ADD_PRODUCTS(last, next_word) \
    { \
        uint8x16_t two[PIXELS / 2]; \
        EACH_TWO two[n] = of_two(x[2 * n], x[2 * n + 1], last); \
        UNROLL \
        for (int32_t i = 0; i < 4; i += 2) { \
            const int8x16_t word[2] = {unpacked(vld1q_s8(w + 16 * i), PART(2 * (last), bits), bits), \
                                       unpacked(vld1q_s8(w + 16 * i + 16), PART(2 * (last), bits), bits)}; \
            const int8x16_t second[2] = {next_word(i, last), next_word(i + 1, last)}; \
            IN_ORDER \
            UNROLL \
            for (int32_t k = 0; k < 2; k++) { \
                const int8x16_t first_two = channels_of(word[k], second[k], 0); \
                const int8x16_t last_two = channels_of(word[k], second[k], 1); \
                EACH_TWO \
                { \
                    sum[n][2 * (i + k)] = vusmmlaq_s32(sum[n][2 * (i + k)], two[n], first_two); \
                    sum[n][2 * (i + k) + 1] = vusmmlaq_s32(sum[n][2 * (i + k) + 1], two[n], last_two); \
                } \
            } \
        } \
    }
#define SECOND_WORD(i, last) \
    unpacked(vld1q_s8(w + (bits == 8 ? at->stride : 0) + 16 * (i)), PART(2 * (last) + 1, bits), bits)
#define NO_WORD(i, last) vdupq_n_s8(0)
#define ADD_TWO_WORDS(last) \
    ADD_PRODUCTS(last, SECOND_WORD) \
    if (ENDS_WORD(2 * (last) + 1, bits)) \
        w += (bits == 8 ? 2 : 1) * at->stride;
#define ADD_LAST_WORD(last) \
    ADD_PRODUCTS(last, NO_WORD) \
    w += at->stride;

/* The same with arranged weights. */
#define ADD_ARRANGED(last) \
    { \
        uint8x16_t two[PIXELS / 2]; \
        EACH_TWO two[n] = of_two(x[2 * n], x[2 * n + 1], last); \
        UNROLL \
        for (int32_t i = 0; i < 8; i += 2) { \
            const int8x16_t channels[2] = {vld1q_s8(w + 16 * i), vld1q_s8(w + 16 * i + 16)}; \
            IN_ORDER \
            UNROLL \
            for (int32_t k = 0; k < 2; k++) \
                EACH_TWO sum[n][i + k] = vusmmlaq_s32(sum[n][i + k], two[n], channels[k]); \
        } \
        w += 128; \
    }

#define LOAD_PIXELS \
    UNROLL \
    for (int32_t n = 0; n < PIXELS; n++) \
        x[n] = activations_of(vld1q_u8(from[n] + offset));

/* Add the dot products of PIXELS windows with the weights of 16 channels. A sum holds two channels of two pixels. */
INLINE void add_many_windows(v16i *acc, const window *at, const uint8_t *const *from, const int8_t *w, int32_t bits)
{
    int32x4_t sum[PIXELS / 2][8];

    EACH_TWO
        EACH
        {
            const int64x2_t one = vreinterpretq_s64_s32(acc[2 * n].at[i]), other = vreinterpretq_s64_s32(acc[2 * n + 1].at[i]);

            sum[n][2 * i] = vreinterpretq_s32_s64(vzip1q_s64(one, other));
            sum[n][2 * i + 1] = vreinterpretq_s32_s64(vzip2q_s64(one, other));
        }
    if (at->arranged != NULL) {
        w = at->arranged;
        for (int32_t run = 0; run < at->runs; run++) {
            ptrdiff_t offset = at->start[run * at->step];
            int32_t words = WORDS(at, bits);
            activations x[PIXELS];

            for (; words >= 3; words -= 4, offset += 16) {
                LOAD_PIXELS
                ADD_ARRANGED(0)
                ADD_ARRANGED(1)
            }
            if (words > 0) {
                LOAD_PIXELS
                ADD_ARRANGED(0)
            }
        }
    } else {
        for (int32_t run = 0; run < at->runs; run++) {
            ptrdiff_t offset = at->start[run * at->step];
            int32_t words = WORDS(at, bits);
            activations x[PIXELS];

            for (; words >= 4; words -= 4, offset += 16) {
                LOAD_PIXELS
                ADD_TWO_WORDS(0)
                ADD_TWO_WORDS(1)
            }
            if (words > 0) {
                LOAD_PIXELS
                if (bits == 8 && words == 1) {
                    ADD_LAST_WORD(0)
                } else {
                    ADD_TWO_WORDS(0)
                }
                if (bits == 8 && words == 3) {
                    ADD_LAST_WORD(1)
                }
            }
        }
    }
    EACH_TWO
        EACH
        {
            const int64x2_t a = vreinterpretq_s64_s32(sum[n][2 * i]), b = vreinterpretq_s64_s32(sum[n][2 * i + 1]);

            acc[2 * n].at[i] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
            acc[2 * n + 1].at[i] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
        }
}

/* Add the products of one word, whose activations are in a lane of x. */
#define ADD_WORD(lane) \
    { \
        const int8x16x4_t four = vld1q_s8_x4(w); \
        EACH acc->at[i] = vsudotq_laneq_s32(acc->at[i], unpacked(four.val[i], PART(lane, bits), bits), x, lane); \
        if (ENDS_WORD(lane, bits)) \
            w += at->stride; \
    }

/* Add the dot products of 1 or PIXELS windows with the weights of 16 channels. */
INLINE void add_windows(v16i *acc, const window *at, const uint8_t *const *from, const int8_t *w, int32_t pixels,
                        int32_t bits)
{
    if (pixels > 1) {
        add_many_windows(acc, at, from, w, bits);
        return;
    }
    for (int32_t run = 0; run < at->runs; run++) {
        const uint8_t *bytes = from[0] + at->start[run * at->step];

        for (int32_t words = WORDS(at, bits); words > 0; words -= 4, bytes += 16) {
            const activations x = activations_of(vld1q_u8(bytes));

            ADD_WORD(0)
            if (words > 1)
                ADD_WORD(1)
            if (words > 2)
                ADD_WORD(2)
            if (words > 3)
                ADD_WORD(3)
        }
    }
}

/* Add four products of taps to each lane. */
INLINE int32x4_t add_taps(int32x4_t acc, activations x, int8x16_t w)
{
    return vusdotq_s32(acc, x, w);
}
