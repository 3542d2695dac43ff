/* AVX2. vpmaddubsw multiplies bytes and adds neighbouring products in 16 bits, which saturates for large weights. Where no
 * pair of a word can saturate, in one of three arrangements of its four bytes, the kernels use it; elsewhere they multiply
 * in 16 bits with vpmaddwd, which is exact for all weights. */
typedef __m256i word; /* four activations of one pixel, for all lanes */
typedef struct {
    __m256i lo, hi;
} weights; /* four weights for each lane */

#define ACCUMULATORS 6 /* of two registers, of 16; the others hold weights and an activation */
#define HAS_PAIRS

INLINE word load_word(const uint8_t *from)
{
    int32_t bytes;

    memcpy(&bytes, from, sizeof bytes);
    return _mm256_set1_epi32(bytes);
}

INLINE weights load_weights(const int8_t *from)
{
    const weights w = {load_256(from), load_256(from + 32)};

    return w;
}

/* Add four products to each lane, exactly for all weights. */
INLINE __m256i add_products(__m256i acc, __m256i x, __m256i w)
{
    const __m256i even = _mm256_and_si256(x, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(x, 8);

    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(even, _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8)));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(odd, _mm256_srai_epi16(w, 8)));
}

/* Add the four products of its weights to each lane. */
INLINE v16i dot(v16i acc, word x, weights w)
{
    acc.lo = add_products(acc.lo, x, w.lo);
    acc.hi = add_products(acc.hi, x, w.hi);
    return acc;
}

/* Arrange the bytes of each lane so that neighbours do not saturate: 0, 1, 2, 3 (as they are), 0, 2, 1, 3 or 0, 3, 2, 1. */
INLINE __m256i arranged(__m256i a, int32_t arrangement)
{
    const __m256i second =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    const __m256i third =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 3, 2, 1, 4, 7, 6, 5, 8, 11, 10, 9, 12, 15, 14, 13));

    return arrangement == 0 ? a : _mm256_shuffle_epi8(a, arrangement == 1 ? second : third);
}

INLINE weights arranged_weights(weights w, int32_t arrangement)
{
    w.lo = arranged(w.lo, arrangement);
    w.hi = arranged(w.hi, arrangement);
    return w;
}

/* The same for weights that are arranged and do not saturate. */
INLINE v16i dot_pairs(v16i acc, word x, weights w, int32_t arrangement)
{
    const __m256i ones = _mm256_set1_epi16(1), bytes = arranged(x, arrangement);

    acc.lo = _mm256_add_epi32(acc.lo, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, w.lo), ones));
    acc.hi = _mm256_add_epi32(acc.hi, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, w.hi), ones));
    return acc;
}

INLINE v16i dot_lanes(v16i acc, lanes x, weights w)
{
    acc.lo = add_products(acc.lo, x.lo, w.lo);
    acc.hi = add_products(acc.hi, x.hi, w.hi);
    return acc;
}
