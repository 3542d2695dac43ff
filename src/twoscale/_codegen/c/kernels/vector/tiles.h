/* Weights and tiles in PARTS registers: what AVX-VNNI, AVX2 and SSE4.1 share. */
typedef INT_PART word; /* four activations of one pixel, for all lanes */
typedef struct {
    INT_PART at[PARTS];
} weights; /* four weights for each lane */
typedef weights lanes; /* four activations for each lane */
typedef struct {
    lanes at[4];
} taps; /* four taps of 64 channels */
typedef struct {
    INT_PART at[PARTS];
} v64b;

INLINE word load_word(const uint8_t *from)
{
    int32_t bytes;

    memcpy(&bytes, from, sizeof bytes);
    return SET_I(bytes);
}

INLINE weights load_weights(const int8_t *from)
{
    weights w;

    EACH w.at[i] = LOAD_I(from + 4 * FIRST);
    return w;
}

/* The weights of word `part` of those that are packed with `bits` bits each. */
INLINE weights unpacked(weights w, int32_t part, int32_t bits)
{
    const __m128i signs = bits == 4 ? _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)
                                    : _mm_setr_epi8(0, 1, -2, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const INT_PART mask = SET_I(bits == 4 ? 0x0f0f0f0f : 0x03030303);

    if (bits < 8)
        EACH w.at[i] = SHUFFLE(REPEAT(signs), AND_I(DOWN_16(w.at[i], part * bits), mask));
    return w;
}

/* Add the four products of its weights to each lane. */
INLINE v16i dot(v16i acc, word x, weights w)
{
    EACH acc.at[i] = DOT(acc.at[i], x, w.at[i]);
    return acc;
}

INLINE v16i dot_lanes(v16i acc, lanes x, weights w)
{
    EACH acc.at[i] = DOT(acc.at[i], x.at[i], w.at[i]);
    return acc;
}

/* The same value in one variable. Without this, gcc keeps a second copy of another type and updates it in every step. */
INLINE v16i summed(v16i acc)
{
    EACH __asm__("" : "+x"(acc.at[i]));
    return acc;
}

INLINE v64b set_64(uint8_t value)
{
    v64b v;

    EACH v.at[i] = REPEAT(SET_B(value));
    return v;
}

INLINE v64b clamp_64(v64b a, v64b lo, v64b hi)
{
    EACH a.at[i] = CLAMP(a.at[i], lo.at[i], hi.at[i]);
    return a;
}

INLINE void store_64(uint8_t *to, v64b a)
{
    EACH STORE_I(to + 4 * FIRST, a.at[i]);
}

INLINE void store_half(uint8_t *to, v64b a, int32_t half)
{
    UNROLL
    for (int32_t i = 0; i < PARTS / 2; i++)
        STORE_I(to + 4 * FIRST, a.at[PARTS / 2 * half + i]);
}

INLINE void store_quarter(uint8_t *to, v64b a, int32_t quarter)
{
    store_b(to, QUARTER(a, quarter), 16);
}

/* The first `count` bytes of a quarter. */
INLINE void store_few(uint8_t *to, v64b a, int32_t quarter, int32_t count)
{
    store_b(to, QUARTER(a, quarter), count);
}

/* The first `count` of 64 bytes. */
INLINE void store_first(uint8_t *to, v64b a, int32_t count)
{
    uint8_t bytes[64];
    uint8_t *const all = count >= 64 ? to : bytes;

    store_64(all, a);
    if (count < 64)
        memcpy(to, bytes, (size_t)count);
}

/* Four taps, `step` bytes apart, side by side for each of 64 channels; in the order in which unpacking leaves them. */
INLINE taps load_taps(const uint8_t *from, int32_t step)
{
    taps t;

    EACH
    {
        const uint8_t *const at = from + 4 * FIRST;
        const INT_PART a = LOAD_I(at), b = LOAD_I(at + step), c = LOAD_I(at + 2 * step), d = LOAD_I(at + 3 * step);
        const INT_PART ab_lo = LOW_8(a, b), ab_hi = HIGH_8(a, b), cd_lo = LOW_8(c, d), cd_hi = HIGH_8(c, d);

        t.at[0].at[i] = LOW_16(ab_lo, cd_lo);
        t.at[1].at[i] = HIGH_16(ab_lo, cd_lo);
        t.at[2].at[i] = LOW_16(ab_hi, cd_hi);
        t.at[3].at[i] = HIGH_16(ab_hi, cd_hi);
    }
    return t;
}

/* RNE of |numbers| < 2^31, clamped to 0..255, in the order of packing. */
INLINE INT_PART round_part(FLOAT_PART a, FLOAT_PART b, FLOAT_PART c, FLOAT_PART d)
{
    return PACK_16(PACK_32(ROUND_F(a), ROUND_F(b)), PACK_32(ROUND_F(c), ROUND_F(d)));
}

/* The same for all parts: from the order of load_taps to that of the channels. */
INLINE v64b round_taps(v16f a, v16f b, v16f c, v16f d)
{
    v64b v;

    EACH v.at[i] = round_part(a.at[i], b.at[i], c.at[i], d.at[i]);
    return v;
}
