/* AVX-VNNI: vpdpbusd of 256 bits multiplies and adds 32 bytes. */
typedef __m256i word; /* four activations of one pixel, for all lanes */
typedef struct {
    __m256i lo, hi;
} weights; /* four weights for each lane */

#define ACCUMULATORS 6 /* of two registers, of 16; the others hold weights and an activation */

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

/* Add the four products of its weights to each lane. */
INLINE v16i dot(v16i acc, word x, weights w)
{
    acc.lo = _mm256_dpbusd_avx_epi32(acc.lo, x, w.lo);
    acc.hi = _mm256_dpbusd_avx_epi32(acc.hi, x, w.hi);
    return acc;
}

INLINE v16i dot_lanes(v16i acc, lanes x, weights w)
{
    acc.lo = _mm256_dpbusd_avx_epi32(acc.lo, x.lo, w.lo);
    acc.hi = _mm256_dpbusd_avx_epi32(acc.hi, x.hi, w.hi);
    return acc;
}
