/* Sixteen numbers at a time, in two halves of 256 bits: what AVX2 and AVX-VNNI share. */
typedef struct {
    __m256i lo, hi;
} v16i;
typedef struct {
    __m256 lo, hi;
} v16f;
typedef __m128i v16b;
INLINE v16i set_i(int32_t value)
{
    const v16i v = {_mm256_set1_epi32(value), _mm256_set1_epi32(value)};

    return v;
}

INLINE __m256i load_256(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

INLINE v16i load_i(const int32_t *from)
{
    const v16i v = {load_256(from), load_256(from + 8)};

    return v;
}

INLINE v16i add_i(v16i a, v16i b)
{
    const v16i v = {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};

    return v;
}

/* Put numbers in 0..255 into byte `place` of each number of `all`. */
INLINE v16i put_byte(v16i all, v16i a, int32_t place)
{
    const __m128i shift = _mm_cvtsi32_si128(8 * place);

    all.lo = _mm256_or_si256(all.lo, _mm256_sll_epi32(a.lo, shift));
    all.hi = _mm256_or_si256(all.hi, _mm256_sll_epi32(a.hi, shift));
    return all;
}

/* The same value in one variable. Without this, gcc keeps a second copy of another type and updates it in every step. */
INLINE v16i summed(v16i acc)
{
    __asm__("" : "+x"(acc.lo), "+x"(acc.hi));
    return acc;
}

INLINE v16f set_f(float value)
{
    const v16f v = {_mm256_set1_ps(value), _mm256_set1_ps(value)};

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
    v.lo = _mm256_loadu_ps(from);
    v.hi = _mm256_loadu_ps(from + 8);
    return v;
}

/* Whether there is a NaN or an infinity. */
INLINE int not_finite(v16f a)
{
    const __m256 lo = _mm256_sub_ps(a.lo, a.lo), hi = _mm256_sub_ps(a.hi, a.hi);

    return _mm256_movemask_ps(_mm256_cmp_ps(_mm256_add_ps(lo, hi), _mm256_setzero_ps(), _CMP_NEQ_UQ));
}

INLINE v16f to_f(v16i a)
{
    const v16f v = {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};

    return v;
}

INLINE v16f mul(v16f a, v16f b)
{
    const v16f v = {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};

    return v;
}

/* Whether any |a| is above the limit. */
INLINE int any_beyond(v16f a, float limit)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256 most = _mm256_max_ps(_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi));

    return _mm256_movemask_ps(_mm256_cmp_ps(most, _mm256_set1_ps(limit), _CMP_GT_OQ));
}

/* a * b + c, fused or not: used where both are correct. */
INLINE v16f mul_add(v16f a, v16f b, v16f c)
{
    const v16f v = {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};

    return v;
}

INLINE v16f divide(v16f a, v16f b)
{
    const v16f v = {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};

    return v;
}

INLINE v16f clamp_f(v16f a, v16f lo, v16f hi)
{
    const v16f v = {_mm256_min_ps(_mm256_max_ps(a.lo, lo.lo), hi.lo), _mm256_min_ps(_mm256_max_ps(a.hi, lo.hi), hi.hi)};

    return v;
}

/* RNE of |a| < 2^22. */
INLINE v16i round_f(v16f a)
{
    const v16i v = {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};

    return v;
}

INLINE v16b load_b(const uint8_t *from)
{
    return _mm_loadu_si128((const __m128i *)(const void *)from);
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
    v16b bytes;
    v16i v;

    if (count < 16) {
        memcpy(some, from, (size_t)count);
        from = some;
    }
    bytes = load_b(from);
    v.lo = _mm256_cvtepu8_epi32(bytes);
    v.hi = _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8));
    return v;
}

/* The first `count` of 16 numbers in 0..255 as bytes. */
INLINE void store_u8(uint8_t *to, v16i a, int32_t count)
{
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xD8);

    store_b(to, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)), count);
}

INLINE void store_i(uint8_t *to, v16i a, int32_t count)
{
    int32_t numbers[16];

    _mm256_storeu_si256((__m256i *)(void *)numbers, a.lo);
    _mm256_storeu_si256((__m256i *)(void *)(numbers + 8), a.hi);
    memcpy(to, numbers, (size_t)(count < 16 ? count : 16) * sizeof(int32_t));
}

/* Store three bytes of each of the first `count` of 16 numbers, side by side. */
INLINE void store_threes(uint8_t *to, v16i a, int32_t count)
{
    const __m256i bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m256i words = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7);
    uint8_t all[56];

    _mm256_storeu_si256((__m256i *)(void *)all, _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(a.lo, bytes), words));
    _mm256_storeu_si256((__m256i *)(void *)(all + 24), _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(a.hi, bytes), words));
    if (count >= 16)
        memcpy(to, all, 48);
    else
        memcpy(to, all, (size_t)(3 * count));
}

typedef struct {
    __m256i lo, hi;
} v64b;

/* RNE of |numbers| < 2^31, clamped to 0..255, in the given order. */
INLINE __m256i round_32(v16f a, v16f b)
{
    const __m256i words_a = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    const __m256i words_b = _mm256_packs_epi32(_mm256_cvtps_epi32(b.lo), _mm256_cvtps_epi32(b.hi));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);

    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words_a, words_b), order);
}

INLINE v64b round_64(v16f a, v16f b, v16f c, v16f d)
{
    const v64b v = {round_32(a, b), round_32(c, d)};

    return v;
}

INLINE v64b set_64(uint8_t value)
{
    const v64b v = {_mm256_set1_epi8((char)value), _mm256_set1_epi8((char)value)};

    return v;
}

INLINE v64b clamp_64(v64b a, v64b lo, v64b hi)
{
    const v64b v = {_mm256_min_epu8(_mm256_max_epu8(a.lo, lo.lo), hi.lo), _mm256_min_epu8(_mm256_max_epu8(a.hi, lo.hi), hi.hi)};

    return v;
}

INLINE void store_64(uint8_t *to, v64b a)
{
    _mm256_storeu_si256((__m256i *)(void *)to, a.lo);
    _mm256_storeu_si256((__m256i *)(void *)(to + 32), a.hi);
}

INLINE void store_half(uint8_t *to, v64b a, int32_t half)
{
    _mm256_storeu_si256((__m256i *)(void *)to, half == 0 ? a.lo : a.hi);
}

INLINE __m128i quarter_of(v64b a, int32_t quarter)
{
    const __m256i half = quarter < 2 ? a.lo : a.hi;

    return quarter % 2 == 0 ? _mm256_castsi256_si128(half) : _mm256_extracti128_si256(half, 1);
}

INLINE void store_quarter(uint8_t *to, v64b a, int32_t quarter)
{
    store_b(to, quarter_of(a, quarter), 16);
}

/* The first `count` bytes of a quarter. */
INLINE void store_few(uint8_t *to, v64b a, int32_t quarter, int32_t count)
{
    store_b(to, quarter_of(a, quarter), count);
}

typedef struct {
    __m256i lo, hi;
} lanes; /* four activations for each lane */

typedef struct {
    lanes at[4];
} taps; /* four taps of 64 channels */

/* Four taps, `step` bytes apart, side by side for each of 64 channels; in the order in which unpacking leaves them. */
INLINE taps load_taps(const uint8_t *from, int32_t step)
{
    taps t;

    for (int32_t half = 0; half < 2; half++, from += 32) {
        const __m256i a = load_256(from), b = load_256(from + step), c = load_256(from + 2 * step);
        const __m256i d = load_256(from + 3 * step);
        const __m256i ab_lo = _mm256_unpacklo_epi8(a, b), ab_hi = _mm256_unpackhi_epi8(a, b);
        const __m256i cd_lo = _mm256_unpacklo_epi8(c, d), cd_hi = _mm256_unpackhi_epi8(c, d);
        const __m256i parts[4] = {_mm256_unpacklo_epi16(ab_lo, cd_lo), _mm256_unpackhi_epi16(ab_lo, cd_lo),
                                  _mm256_unpacklo_epi16(ab_hi, cd_hi), _mm256_unpackhi_epi16(ab_hi, cd_hi)};

        for (int32_t k = 0; k < 4; k++) {
            if (half == 0)
                t.at[k].lo = parts[k];
            else
                t.at[k].hi = parts[k];
        }
    }
    return t;
}

INLINE __m256i round_half(__m256 a, __m256 b, __m256 c, __m256 d)
{
    return _mm256_packus_epi16(_mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)),
                               _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d)));
}

/* RNE of |numbers| < 2^31, clamped to 0..255: from the order of load_taps to that of the channels. */
INLINE v64b round_taps(v16f a, v16f b, v16f c, v16f d)
{
    const v64b v = {round_half(a.lo, b.lo, c.lo, d.lo), round_half(a.hi, b.hi, c.hi, d.hi)};

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
