/* Sixteen numbers at a time, in plain C, for CPUs without any of the instruction sets. */
typedef struct {
    int32_t at[16];
} v16i;
typedef struct {
    float at[16];
} v16f;
typedef struct {
    uint8_t at[16];
} v16b;
typedef struct {
    uint8_t at[4];
} word; /* four activations of one pixel, for all lanes */
typedef struct {
    const int8_t *at;
    int32_t left, right; /* bits by which to shift a byte, which may have several weights */
} weights; /* four weights for each lane */

#define ACCUMULATORS 1 /* of a tile */
#define PACKED_ACCUMULATORS ACCUMULATORS

#define EACH ROLLED for (int32_t i = 0; i < 16; i++)

INLINE v16i set_i(int32_t value)
{
    v16i v;

    EACH v.at[i] = value;
    return v;
}

INLINE v16i load_i(const int32_t *from)
{
    v16i v;

    memcpy(v.at, from, sizeof v);
    return v;
}

INLINE v16i add_i(v16i a, v16i b)
{
    EACH a.at[i] += b.at[i];
    return a;
}

/* Put numbers in 0..255 into byte `place`, in memory order, of each number of `all`. */
INLINE v16i put_byte(v16i all, v16i a, int32_t place)
{
    EACH
    {
        const uint8_t byte = (uint8_t)a.at[i];

        memcpy((uint8_t *)&all.at[i] + place, &byte, 1);
    }
    return all;
}

INLINE word load_word(const uint8_t *from)
{
    word x;

    memcpy(x.at, from, sizeof x);
    return x;
}

INLINE weights load_weights(const int8_t *from)
{
    const weights w = {from, 0, 0};

    return w;
}

/* The weights of word `part` of those that are packed with `bits` bits each. */
INLINE weights unpacked(weights w, int32_t part, int32_t bits)
{
    w.left = 8 - bits * (part + 1);
    w.right = 8 - bits;
    return w;
}

#define WEIGHT(w, i) ((int8_t)(uint8_t)((uint8_t)(w).at[i] << (w).left) >> (w).right)

/* Add the four products of its weights to each lane. Partial sums may wrap around; the final sum is right. */
INLINE v16i dot(v16i acc, word x, weights w)
{
    EACH
    {
        const int32_t products = x.at[0] * WEIGHT(w, 4 * i) + x.at[1] * WEIGHT(w, 4 * i + 1) +
                                 x.at[2] * WEIGHT(w, 4 * i + 2) + x.at[3] * WEIGHT(w, 4 * i + 3);

        acc.at[i] = (int32_t)((uint32_t)acc.at[i] + (uint32_t)products);
    }
    return acc;
}

/* The same value: only the other instruction sets need to help the compiler here. */
INLINE v16i summed(v16i acc)
{
    return acc;
}

INLINE v16f set_f(float value)
{
    v16f v;

    EACH v.at[i] = value;
    return v;
}

/* The first `count` of 16; zeros for the rest. */
INLINE v16f load_f(const float *from, int32_t count)
{
    v16f v = {{0}};

    memcpy(v.at, from, (size_t)count * sizeof(float));
    return v;
}

/* Whether there is a NaN or an infinity. */
INLINE int not_finite(v16f a)
{
    int bad = 0;

    EACH bad |= !(a.at[i] - a.at[i] == 0.0f);
    return bad;
}

INLINE v16f to_f(v16i a)
{
    v16f v;

    EACH v.at[i] = (float)a.at[i];
    return v;
}

INLINE v16f mul(v16f a, v16f b)
{
    EACH a.at[i] *= b.at[i];
    return a;
}

/* Whether any |a| is above the limit. */
INLINE int any_beyond(v16f a, float limit)
{
    int found = 0;

    EACH found |= a.at[i] > limit || -a.at[i] > limit;
    return found;
}

/* a * b + c, fused or not: used where both are correct. */
INLINE v16f mul_add(v16f a, v16f b, v16f c)
{
    EACH a.at[i] = a.at[i] * b.at[i] + c.at[i];
    return a;
}

INLINE v16f divide(v16f a, v16f b)
{
    EACH a.at[i] /= b.at[i];
    return a;
}

INLINE v16f clamp_f(v16f a, v16f lo, v16f hi)
{
    EACH a.at[i] = a.at[i] < lo.at[i] ? lo.at[i] : a.at[i] > hi.at[i] ? hi.at[i] : a.at[i];
    return a;
}

/* RNE of |a| < 2^22: above 2^23 floats are whole numbers, so the addition rounds. */
INLINE v16i round_f(v16f a)
{
    v16i v;

    EACH v.at[i] = (int32_t)((a.at[i] + 12582912.0f) - 12582912.0f);
    return v;
}

/* The first `count` of 16 bytes as numbers; the others are undefined. */
INLINE v16i load_u8(const uint8_t *from, int32_t count)
{
    v16i v = {{0}};

    for (int32_t i = 0; i < count && i < 16; i++)
        v.at[i] = from[i];
    return v;
}

/* The first `count` of 16 numbers in 0..255 as bytes. */
INLINE void store_u8(uint8_t *to, v16i a, int32_t count)
{
    for (int32_t i = 0; i < count && i < 16; i++)
        to[i] = (uint8_t)a.at[i];
}

INLINE void store_i(uint8_t *to, v16i a, int32_t count)
{
    memcpy(to, a.at, (size_t)(count < 16 ? count : 16) * sizeof(int32_t));
}

/* Store three bytes of each of the first `count` of 16 numbers, side by side. */
INLINE void store_threes(uint8_t *to, v16i a, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        memcpy(to + 3 * i, &a.at[i], 3);
}

INLINE v16b load_b(const uint8_t *from)
{
    v16b v;

    memcpy(v.at, from, sizeof v);
    return v;
}

INLINE v16b set_b(uint8_t value)
{
    v16b v;

    EACH v.at[i] = value;
    return v;
}

/* The first `count` of 16 bytes. */
INLINE void store_b(uint8_t *to, v16b a, int32_t count)
{
    memcpy(to, a.at, count < 16 ? (size_t)count : 16);
}

INLINE v16b max_b(v16b a, v16b b)
{
    EACH a.at[i] = a.at[i] > b.at[i] ? a.at[i] : b.at[i];
    return a;
}

typedef struct {
    uint8_t at[64];
} v64b;

/* RNE of |numbers| < 2^31, clamped to 0..255, in the given order. */
INLINE v64b round_64(v16f a, v16f b, v16f c, v16f d)
{
    const v16f all[4] = {a, b, c, d};
    v64b v;

    for (int32_t k = 0; k < 4; k++) {
        const v16i whole = round_f(clamp_f(all[k], set_f(0.0f), set_f(255.0f)));

        EACH v.at[16 * k + i] = (uint8_t)whole.at[i];
    }
    return v;
}

INLINE v64b set_64(uint8_t value)
{
    v64b v;

    memset(v.at, value, sizeof v.at);
    return v;
}

INLINE v64b clamp_64(v64b a, v64b lo, v64b hi)
{
    for (int32_t i = 0; i < 64; i++)
        a.at[i] = a.at[i] < lo.at[i] ? lo.at[i] : a.at[i] > hi.at[i] ? hi.at[i] : a.at[i];
    return a;
}

INLINE void store_64(uint8_t *to, v64b a)
{
    memcpy(to, a.at, sizeof a.at);
}

INLINE void store_half(uint8_t *to, v64b a, int32_t half)
{
    memcpy(to, a.at + 32 * half, 32);
}

INLINE void store_quarter(uint8_t *to, v64b a, int32_t quarter)
{
    memcpy(to, a.at + 16 * quarter, 16);
}

/* The first `count` bytes of a quarter. */
INLINE void store_few(uint8_t *to, v64b a, int32_t quarter, int32_t count)
{
    memcpy(to, a.at + 16 * quarter, count < 16 ? (size_t)count : 16);
}

typedef struct {
    uint8_t at[64];
} lanes; /* four activations for each lane */

typedef struct {
    lanes at[4];
} taps; /* four taps of 64 channels */

/* Four taps, `step` bytes apart, side by side for each of 64 channels; in the order of the other instruction sets. */
INLINE taps load_taps(const uint8_t *from, int32_t step)
{
    taps t;

    for (int32_t k = 0; k < 4; k++)
        EACH for (int32_t tap = 0; tap < 4; tap++)
            t.at[k].at[4 * i + tap] = from[tap * step + i / 4 * 16 + 4 * k + i % 4];
    return t;
}

INLINE v16i dot_lanes(v16i acc, lanes x, weights w)
{
    EACH
    {
        int32_t products = 0;

        for (int32_t tap = 0; tap < 4; tap++)
            products += x.at[4 * i + tap] * w.at[4 * i + tap];
        acc.at[i] = (int32_t)((uint32_t)acc.at[i] + (uint32_t)products);
    }
    return acc;
}

/* RNE of |numbers| < 2^31, clamped to 0..255: from the order of load_taps to that of the channels. */
INLINE v64b round_taps(v16f a, v16f b, v16f c, v16f d)
{
    const v64b found = round_64(a, b, c, d);
    v64b v;

    for (int32_t k = 0; k < 4; k++)
        EACH v.at[i / 4 * 16 + 4 * k + i % 4] = found.at[16 * k + i];
    return v;
}

/* The first `count` of 64 bytes. */
INLINE void store_first(uint8_t *to, v64b a, int32_t count)
{
    memcpy(to, a.at, count < 64 ? (size_t)count : 64);
}
