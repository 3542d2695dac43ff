/* Sixteen numbers at a time, in four quarters of 128 bits: SSE4.1. Products are those of AVX2: vpmaddubsw's predecessor
 * where no pair of a word saturates, exact ones of 16 bits elsewhere. */
typedef struct {
    __m128i at[4];
} v16i;
typedef struct {
    __m128 at[4];
} v16f;
typedef __m128i v16b;
typedef struct {
    __m128i at[4];
} v64b;
typedef __m128i word; /* four activations of one pixel, for all lanes */
typedef struct {
    __m128i at[4];
} weights; /* four weights for each lane */

#define ACCUMULATORS 2 /* of four registers, of 16; the others hold weights and an activation */
#define HAS_PAIRS

#define EACH UNROLL for (int32_t i = 0; i < 4; i++)

INLINE v16i set_i(int32_t value)
{
    v16i v;

    EACH v.at[i] = _mm_set1_epi32(value);
    return v;
}

INLINE __m128i load_128(const void *from)
{
    return _mm_loadu_si128((const __m128i *)from);
}

INLINE v16i load_i(const int32_t *from)
{
    v16i v;

    EACH v.at[i] = load_128(from + 4 * i);
    return v;
}

INLINE v16i add_i(v16i a, v16i b)
{
    EACH a.at[i] = _mm_add_epi32(a.at[i], b.at[i]);
    return a;
}

/* Put numbers in 0..255 into byte `place` of each number of `all`. */
INLINE v16i put_byte(v16i all, v16i a, int32_t place)
{
    const __m128i shift = _mm_cvtsi32_si128(8 * place);

    EACH all.at[i] = _mm_or_si128(all.at[i], _mm_sll_epi32(a.at[i], shift));
    return all;
}

INLINE word load_word(const uint8_t *from)
{
    int32_t bytes;

    memcpy(&bytes, from, sizeof bytes);
    return _mm_set1_epi32(bytes);
}

INLINE weights load_weights(const int8_t *from)
{
    weights w;

    EACH w.at[i] = load_128(from + 16 * i);
    return w;
}

/* Add four products to each lane, exactly for all weights. */
INLINE __m128i add_products(__m128i acc, __m128i x, __m128i w)
{
    const __m128i even = _mm_and_si128(x, _mm_set1_epi16(255)), odd = _mm_srli_epi16(x, 8);

    acc = _mm_add_epi32(acc, _mm_madd_epi16(even, _mm_srai_epi16(_mm_slli_epi16(w, 8), 8)));
    return _mm_add_epi32(acc, _mm_madd_epi16(odd, _mm_srai_epi16(w, 8)));
}

/* Add the four products of its weights to each lane. */
INLINE v16i dot(v16i acc, word x, weights w)
{
    EACH acc.at[i] = add_products(acc.at[i], x, w.at[i]);
    return acc;
}

/* Arrange the bytes of each lane so that neighbours do not saturate: 0, 1, 2, 3 (as they are), 0, 2, 1, 3 or 0, 3, 2, 1. */
INLINE __m128i arranged(__m128i a, int32_t arrangement)
{
    const __m128i second = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    const __m128i third = _mm_setr_epi8(0, 3, 2, 1, 4, 7, 6, 5, 8, 11, 10, 9, 12, 15, 14, 13);

    return arrangement == 0 ? a : _mm_shuffle_epi8(a, arrangement == 1 ? second : third);
}

INLINE weights arranged_weights(weights w, int32_t arrangement)
{
    EACH w.at[i] = arranged(w.at[i], arrangement);
    return w;
}

/* The same for weights that are arranged and do not saturate. */
INLINE v16i dot_pairs(v16i acc, word x, weights w, int32_t arrangement)
{
    const __m128i ones = _mm_set1_epi16(1), bytes = arranged(x, arrangement);

    EACH acc.at[i] = _mm_add_epi32(acc.at[i], _mm_madd_epi16(_mm_maddubs_epi16(bytes, w.at[i]), ones));
    return acc;
}

/* The same value in one variable. Without this, gcc keeps a second copy of another type and updates it in every step. */
INLINE v16i summed(v16i acc)
{
    __asm__("" : "+x"(acc.at[0]), "+x"(acc.at[1]), "+x"(acc.at[2]), "+x"(acc.at[3]));
    return acc;
}

INLINE v16f set_f(float value)
{
    v16f v;

    EACH v.at[i] = _mm_set1_ps(value);
    return v;
}

/* The first `count` of 16; zeros for the rest. */
INLINE v16f load_f(const float *from, int32_t count)
{
    float some[16] = {0};
    v16f v;

    if (count < 16) {
        memcpy(some, from, (size_t)count * sizeof(float));
        from = some;
    }
    EACH v.at[i] = _mm_loadu_ps(from + 4 * i);
    return v;
}

/* Whether there is a NaN or an infinity. */
INLINE int not_finite(v16f a)
{
    __m128 zeros = _mm_setzero_ps();

    EACH zeros = _mm_add_ps(zeros, _mm_sub_ps(a.at[i], a.at[i]));
    return _mm_movemask_ps(_mm_cmpneq_ps(zeros, _mm_setzero_ps()));
}

INLINE v16f to_f(v16i a)
{
    v16f v;

    EACH v.at[i] = _mm_cvtepi32_ps(a.at[i]);
    return v;
}

INLINE v16f mul(v16f a, v16f b)
{
    EACH a.at[i] = _mm_mul_ps(a.at[i], b.at[i]);
    return a;
}

/* Whether any |a| is above the limit. */
INLINE int any_beyond(v16f a, float limit)
{
    __m128 most = _mm_setzero_ps();

    EACH most = _mm_max_ps(_mm_andnot_ps(_mm_set1_ps(-0.0f), a.at[i]), most);
    return _mm_movemask_ps(_mm_cmpgt_ps(most, _mm_set1_ps(limit)));
}

/* a * b + c, fused or not: used where both are correct. */
INLINE v16f mul_add(v16f a, v16f b, v16f c)
{
    EACH a.at[i] = _mm_add_ps(_mm_mul_ps(a.at[i], b.at[i]), c.at[i]);
    return a;
}

INLINE v16f divide(v16f a, v16f b)
{
    EACH a.at[i] = _mm_div_ps(a.at[i], b.at[i]);
    return a;
}

INLINE v16f clamp_f(v16f a, v16f lo, v16f hi)
{
    EACH a.at[i] = _mm_min_ps(_mm_max_ps(a.at[i], lo.at[i]), hi.at[i]);
    return a;
}

/* RNE of |a| < 2^22. */
INLINE v16i round_f(v16f a)
{
    v16i v;

    EACH v.at[i] = _mm_cvtps_epi32(a.at[i]);
    return v;
}

INLINE v16b load_b(const uint8_t *from)
{
    return load_128(from);
}

INLINE v16b set_b(uint8_t value)
{
    return _mm_set1_epi8((char)value);
}

/* The first `count` of 16 bytes. */
INLINE void store_b(uint8_t *to, v16b a, int32_t count)
{
    uint8_t bytes[16];

    if (count >= 16) {
        _mm_storeu_si128((__m128i *)(void *)to, a);
    } else {
        _mm_storeu_si128((__m128i *)(void *)bytes, a);
        memcpy(to, bytes, (size_t)count);
    }
}

INLINE v16b max_b(v16b a, v16b b)
{
    return _mm_max_epu8(a, b);
}

/* The first `count` of 16 bytes as numbers; the others are undefined. */
INLINE v16i load_u8(const uint8_t *from, int32_t count)
{
    uint8_t some[16] = {0};
    v16i v;

    if (count < 16) {
        memcpy(some, from, (size_t)count);
        from = some;
    }
    EACH
    {
        int32_t four;

        memcpy(&four, from + 4 * i, sizeof four);
        v.at[i] = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four));
    }
    return v;
}

/* The first `count` of 16 numbers in 0..255 as bytes. */
INLINE void store_u8(uint8_t *to, v16i a, int32_t count)
{
    store_b(to, _mm_packus_epi16(_mm_packs_epi32(a.at[0], a.at[1]), _mm_packs_epi32(a.at[2], a.at[3])), count);
}

INLINE void store_i(uint8_t *to, v16i a, int32_t count)
{
    int32_t numbers[16];

    EACH _mm_storeu_si128((__m128i *)(void *)(numbers + 4 * i), a.at[i]);
    memcpy(to, numbers, (size_t)(count < 16 ? count : 16) * sizeof(int32_t));
}

/* Store three bytes of each of the first `count` of 16 numbers, side by side. */
INLINE void store_threes(uint8_t *to, v16i a, int32_t count)
{
    const __m128i bytes = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    uint8_t all[52];

    EACH _mm_storeu_si128((__m128i *)(void *)(all + 12 * i), _mm_shuffle_epi8(a.at[i], bytes));
    memcpy(to, all, (size_t)(3 * (count < 16 ? count : 16)));
}

/* RNE of |numbers| < 2^31, clamped to 0..255, in the given order. */
INLINE __m128i round_16(__m128 a, __m128 b, __m128 c, __m128 d)
{
    return _mm_packus_epi16(_mm_packs_epi32(_mm_cvtps_epi32(a), _mm_cvtps_epi32(b)),
                            _mm_packs_epi32(_mm_cvtps_epi32(c), _mm_cvtps_epi32(d)));
}

INLINE v64b round_64(v16f a, v16f b, v16f c, v16f d)
{
    const v64b v = {{round_16(a.at[0], a.at[1], a.at[2], a.at[3]), round_16(b.at[0], b.at[1], b.at[2], b.at[3]),
                     round_16(c.at[0], c.at[1], c.at[2], c.at[3]), round_16(d.at[0], d.at[1], d.at[2], d.at[3])}};

    return v;
}

INLINE v64b set_64(uint8_t value)
{
    v64b v;

    EACH v.at[i] = _mm_set1_epi8((char)value);
    return v;
}

INLINE v64b clamp_64(v64b a, v64b lo, v64b hi)
{
    EACH a.at[i] = _mm_min_epu8(_mm_max_epu8(a.at[i], lo.at[i]), hi.at[i]);
    return a;
}

INLINE void store_64(uint8_t *to, v64b a)
{
    EACH _mm_storeu_si128((__m128i *)(void *)(to + 16 * i), a.at[i]);
}

INLINE void store_half(uint8_t *to, v64b a, int32_t half)
{
    _mm_storeu_si128((__m128i *)(void *)to, a.at[2 * half]);
    _mm_storeu_si128((__m128i *)(void *)(to + 16), a.at[2 * half + 1]);
}

INLINE void store_quarter(uint8_t *to, v64b a, int32_t quarter)
{
    store_b(to, a.at[quarter], 16);
}

/* The first `count` bytes of a quarter. */
INLINE void store_few(uint8_t *to, v64b a, int32_t quarter, int32_t count)
{
    store_b(to, a.at[quarter], count);
}

typedef struct {
    __m128i at[4];
} lanes; /* four activations for each lane */

typedef struct {
    lanes at[4];
} taps; /* four taps of 64 channels */

/* Four taps, `step` bytes apart, side by side for each of 64 channels; in the order in which unpacking leaves them. */
INLINE taps load_taps(const uint8_t *from, int32_t step)
{
    taps t;

    EACH
    {
        const __m128i a = load_128(from + 16 * i), b = load_128(from + 16 * i + step);
        const __m128i c = load_128(from + 16 * i + 2 * step), d = load_128(from + 16 * i + 3 * step);
        const __m128i ab_lo = _mm_unpacklo_epi8(a, b), ab_hi = _mm_unpackhi_epi8(a, b);
        const __m128i cd_lo = _mm_unpacklo_epi8(c, d), cd_hi = _mm_unpackhi_epi8(c, d);

        t.at[0].at[i] = _mm_unpacklo_epi16(ab_lo, cd_lo);
        t.at[1].at[i] = _mm_unpackhi_epi16(ab_lo, cd_lo);
        t.at[2].at[i] = _mm_unpacklo_epi16(ab_hi, cd_hi);
        t.at[3].at[i] = _mm_unpackhi_epi16(ab_hi, cd_hi);
    }
    return t;
}

INLINE v16i dot_lanes(v16i acc, lanes x, weights w)
{
    EACH acc.at[i] = add_products(acc.at[i], x.at[i], w.at[i]);
    return acc;
}

/* RNE of |numbers| < 2^31, clamped to 0..255: from the order of load_taps to that of the channels. */
INLINE v64b round_taps(v16f a, v16f b, v16f c, v16f d)
{
    v64b v;

    EACH v.at[i] = round_16(a.at[i], b.at[i], c.at[i], d.at[i]);
    return v;
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

#undef EACH
