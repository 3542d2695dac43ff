/* AVX2. Bytes are multiplied in 16 bits by vpmaddwd, which adds two products in
 * 32 bits. This is exact for all weights; vpmaddubsw is not. */
typedef struct {
    __m256i even, odd;
} word; /* four activations of one pixel, for all lanes: 0 and 2, 1 and 3, as 16 bits */
typedef struct {
    __m256i lo_even, lo_odd, hi_even, hi_odd;
} weights; /* four weights for each lane, likewise */

#define ACCUMULATORS 4 /* of two registers, of 16; the others hold weights and an activation */

INLINE word load_word(const uint8_t *from)
{
    int32_t bytes;
    __m256i x;
    word w;

    memcpy(&bytes, from, sizeof bytes);
    x = _mm256_set1_epi32(bytes);
    w.even = _mm256_and_si256(x, _mm256_set1_epi16(255));
    w.odd = _mm256_srli_epi16(x, 8);
    return w;
}

INLINE weights load_weights(const int8_t *from)
{
    const __m256i lo = load_256(from), hi = load_256(from + 32);
    const weights w = {_mm256_srai_epi16(_mm256_slli_epi16(lo, 8), 8), _mm256_srai_epi16(lo, 8),
                       _mm256_srai_epi16(_mm256_slli_epi16(hi, 8), 8), _mm256_srai_epi16(hi, 8)};

    return w;
}

INLINE __m256i add_products(__m256i acc, __m256i a, __m256i b)
{
    return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
}

/* Add the four products of its weights to each lane. */
INLINE v16i dot(v16i acc, word x, weights w)
{
    acc.lo = add_products(add_products(acc.lo, x.even, w.lo_even), x.odd, w.lo_odd);
    acc.hi = add_products(add_products(acc.hi, x.even, w.hi_even), x.odd, w.hi_odd);
    return acc;
}

INLINE v16i dot_lanes(v16i acc, lanes x, weights w)
{
    const __m256i low = _mm256_set1_epi16(255);

    acc.lo = add_products(add_products(acc.lo, _mm256_and_si256(x.lo, low), w.lo_even), _mm256_srli_epi16(x.lo, 8), w.lo_odd);
    acc.hi = add_products(add_products(acc.hi, _mm256_and_si256(x.hi, low), w.hi_even), _mm256_srli_epi16(x.hi, 8), w.hi_odd);
    return acc;
}
