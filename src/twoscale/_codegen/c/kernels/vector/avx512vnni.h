/* Sixteen numbers at a time: AVX-512 with VNNI, whose vpdpbusd multiplies and adds 64 bytes. */
typedef __m512i v16i;
typedef __m512 v16f;
typedef __m128i v16b;
typedef __m512i word; /* four activations of one pixel, for all lanes */
typedef __m512i weights; /* four weights for each lane */

#define ACCUMULATORS 24 /* of 32 registers; the others hold weights and an activation */
#define PACKED_ACCUMULATORS ACCUMULATORS
#define STEP_ROWS 3 /* of depthwise convolutions */

INLINE v16i set_i(int32_t value)
{
    return _mm512_set1_epi32(value);
}

INLINE v16i load_i(const int32_t *from)
{
    return _mm512_loadu_si512(from);
}

INLINE v16i add_i(v16i a, v16i b)
{
    return _mm512_add_epi32(a, b);
}

/* Put numbers in 0..255 into byte `place` of each number of `all`. */
INLINE v16i put_byte(v16i all, v16i a, int32_t place)
{
    return _mm512_or_si512(all, _mm512_sll_epi32(a, _mm_cvtsi32_si128(8 * place)));
}

INLINE word load_word(const uint8_t *from)
{
    int32_t x;

    memcpy(&x, from, sizeof x);
    return _mm512_set1_epi32(x);
}

INLINE weights load_weights(const int8_t *from)
{
    return _mm512_loadu_si512(from);
}

/* The weights of word `part` of those that are packed with `bits` bits each. */
INLINE weights unpacked(weights w, int32_t part, int32_t bits)
{
    const __m128i signs = bits == 4 ? _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)
                                    : _mm_setr_epi8(0, 1, -2, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i mask = _mm512_set1_epi8(bits == 4 ? 15 : 3);

    if (bits == 8)
        return w;
    w = _mm512_and_si512(_mm512_srl_epi16(w, _mm_cvtsi32_si128(part * bits)), mask);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(signs), w);
}

/* Add the four products of its weights to each lane. */
INLINE v16i dot(v16i acc, word x, weights w)
{
    return _mm512_dpbusd_epi32(acc, x, w);
}

/* The same value in one variable. Without this, gcc keeps a second copy of another type and updates it in every step. */
INLINE v16i summed(v16i acc)
{
    __asm__("" : "+v"(acc));
    return acc;
}

INLINE v16f set_f(float value)
{
    return _mm512_set1_ps(value);
}

INLINE __mmask16 first_lanes(int32_t count)
{
    return (__mmask16)((1u << count) - 1);
}

/* The first `count` of 16; zeros for the rest. */
INLINE v16f load_f(const float *from, int32_t count)
{
    return count >= 16 ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(first_lanes(count), from);
}

/* Whether there is a NaN or an infinity. */
INLINE int not_finite(v16f a)
{
    return _mm512_fpclass_ps_mask(a, 0x99) != 0;
}

INLINE v16f to_f(v16i a)
{
    return _mm512_cvtepi32_ps(a);
}

INLINE v16f mul(v16f a, v16f b)
{
    return _mm512_mul_ps(a, b);
}

/* Whether any |a| is above the limit. */
INLINE int any_beyond(v16f a, float limit)
{
    return _mm512_cmp_ps_mask(_mm512_abs_ps(a), _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
}

/* a * b + c, fused or not: used where both are correct. */
INLINE v16f mul_add(v16f a, v16f b, v16f c)
{
    return _mm512_fmadd_ps(a, b, c);
}

INLINE v16f divide(v16f a, v16f b)
{
    return _mm512_div_ps(a, b);
}

INLINE v16f clamp_f(v16f a, v16f lo, v16f hi)
{
    return _mm512_min_ps(_mm512_max_ps(a, lo), hi);
}

/* RNE of |a| < 2^22. */
INLINE v16i round_f(v16f a)
{
    return _mm512_cvtps_epi32(a);
}

/* The first `count` of 16 bytes as numbers; the others are undefined. */
INLINE v16i load_u8(const uint8_t *from, int32_t count)
{
    return _mm512_cvtepu8_epi32(count >= 16 ? _mm_loadu_si128((const __m128i *)(const void *)from)
                                            : _mm_maskz_loadu_epi8(first_lanes(count), from));
}

/* The first `count` of 16 numbers in 0..255 as bytes. */
INLINE void store_u8(uint8_t *to, v16i a, int32_t count)
{
    const __m128i bytes = _mm512_cvtepi32_epi8(a);

    if (count >= 16)
        _mm_storeu_si128((__m128i *)(void *)to, bytes);
    else
        _mm_mask_storeu_epi8(to, first_lanes(count), bytes);
}

INLINE void store_i(uint8_t *to, v16i a, int32_t count)
{
    if (count >= 16)
        _mm512_storeu_si512(to, a);
    else
        _mm512_mask_storeu_epi32(to, first_lanes(count), a);
}

/* Store three bytes of each of the first `count` of 16 numbers, side by side. */
INLINE void store_threes(uint8_t *to, v16i a, int32_t count)
{
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m512i words = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15);

    a = _mm512_permutexvar_epi32(words, _mm512_shuffle_epi8(a, bytes));
    _mm512_mask_storeu_epi8(to, ((uint64_t)1 << (3 * count)) - 1, a);
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
    if (count >= 16)
        _mm_storeu_si128((__m128i *)(void *)to, a);
    else
        _mm_mask_storeu_epi8(to, first_lanes(count), a);
}

INLINE v16b max_b(v16b a, v16b b)
{
    return _mm_max_epu8(a, b);
}

typedef __m512i v64b;

/* RNE of |numbers| < 2^31, clamped to 0..255, in the given order. */
INLINE v64b round_64(v16f a, v16f b, v16f c, v16f d)
{
    const __m512i ab = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
    const __m512i cd = _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);

    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd));
}

INLINE v64b set_64(uint8_t value)
{
    return _mm512_set1_epi8((char)value);
}

INLINE v64b clamp_64(v64b a, v64b lo, v64b hi)
{
    return _mm512_min_epu8(_mm512_max_epu8(a, lo), hi);
}

INLINE void store_64(uint8_t *to, v64b a)
{
    _mm512_storeu_si512(to, a);
}

INLINE void store_half(uint8_t *to, v64b a, int32_t half)
{
    _mm256_storeu_si256((__m256i *)(void *)to, half == 0 ? _mm512_castsi512_si256(a) : _mm512_extracti64x4_epi64(a, 1));
}

INLINE __m128i quarter_of(v64b a, int32_t quarter)
{
    return quarter == 0   ? _mm512_castsi512_si128(a)
           : quarter == 1 ? _mm512_extracti32x4_epi32(a, 1)
           : quarter == 2 ? _mm512_extracti32x4_epi32(a, 2)
                          : _mm512_extracti32x4_epi32(a, 3);
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

#define HAS_LOOK_UP

typedef struct {
    const uint8_t *at;
    int has_vbmi; /* whether this CPU permutes bytes */
} table256; /* a function of a byte */

INLINE table256 load_table(const uint8_t *from)
{
    const table256 table = {from, __builtin_cpu_supports("avx512vbmi") != 0};

    return table;
}

__attribute__((noinline, unused, target("avx512f,avx512bw,avx512vl,avx512vbmi"))) static void
ISA(look_up_64)(const uint8_t *table, const uint8_t *x, uint8_t *y, int32_t count)
{
    const __m512i a = _mm512_loadu_si512(table), b = _mm512_loadu_si512(table + 64);
    const __m512i c = _mm512_loadu_si512(table + 128), d = _mm512_loadu_si512(table + 192);

    for (int32_t i = 0; i < count; i += 64) {
        const __mmask64 some = count - i < 64 ? ((uint64_t)1 << (count - i)) - 1 : ~(uint64_t)0;
        const __m512i at = _mm512_maskz_loadu_epi8(some, x + i);
        const __m512i low = _mm512_permutex2var_epi8(a, at, b), high = _mm512_permutex2var_epi8(c, at, d);

        _mm512_mask_storeu_epi8(y + i, some, _mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high));
    }
}

INLINE void look_up(table256 table, const uint8_t *x, uint8_t *y, int32_t count)
{
    if (table.has_vbmi)
        ISA(look_up_64)(table.at, x, y, count);
    else
        for (int32_t i = 0; i < count; i++)
            y[i] = table.at[x[i]];
}

typedef struct {
    __m512i at[4];
} taps; /* four taps of 64 channels */

/* Four taps, `step` bytes apart, side by side for each of 64 channels; in the order in which unpacking leaves them. */
INLINE taps load_taps(const uint8_t *from, int32_t step)
{
    const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + step);
    const __m512i c = _mm512_loadu_si512(from + 2 * step), d = _mm512_loadu_si512(from + 3 * step);
    const __m512i ab_lo = _mm512_unpacklo_epi8(a, b), ab_hi = _mm512_unpackhi_epi8(a, b);
    const __m512i cd_lo = _mm512_unpacklo_epi8(c, d), cd_hi = _mm512_unpackhi_epi8(c, d);
    const taps t = {{_mm512_unpacklo_epi16(ab_lo, cd_lo), _mm512_unpackhi_epi16(ab_lo, cd_lo),
                     _mm512_unpacklo_epi16(ab_hi, cd_hi), _mm512_unpackhi_epi16(ab_hi, cd_hi)}};

    return t;
}

INLINE v16i dot_lanes(v16i acc, __m512i x, weights w)
{
    return _mm512_dpbusd_epi32(acc, x, w);
}

/* RNE of |numbers| < 2^31, clamped to 0..255: from the order of load_taps to that of the channels. */
INLINE v64b round_taps(v16f a, v16f b, v16f c, v16f d)
{
    return _mm512_packus_epi16(_mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b)),
                               _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d)));
}

/* The first `count` of 64 bytes. */
INLINE void store_first(uint8_t *to, v64b a, int32_t count)
{
    if (count >= 64)
        _mm512_storeu_si512(to, a);
    else
        _mm512_mask_storeu_epi8(to, ((uint64_t)1 << count) - 1, a);
}
