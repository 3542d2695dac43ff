/* Sixteen times TensorFlow Lite's requantization of value * 2^by, equation (18): the portable fixed_point. High halves of
 * products are bits 31 to 62; those above do not matter, so 64-bit shifts may be logical ones. */
#if defined(FOR_AMX) || defined(FOR_AVX512VNNI)
INLINE v16i fixed_by(v16i value, v16i mantissa, v16i exponent, int32_t by)
{
    const v16i left = _mm512_max_epi32(exponent, _mm512_setzero_si512()), right = _mm512_sub_epi32(left, exponent);
    const v16i one = _mm512_set1_epi32(1), half = _mm512_set1_epi64((int64_t)1 << 30);
    const v16i moved = _mm512_sllv_epi32(_mm512_slli_epi32(value, (unsigned)by), left);
    const v16i even = _mm512_add_epi64(_mm512_mul_epi32(moved, mantissa), half);
    const v16i odd =
        _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(moved, 32), _mm512_srli_epi64(mantissa, 32)), half);
    const v16i high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 31), _mm512_slli_epi64(odd, 1));
    const v16i mask = _mm512_sub_epi32(_mm512_sllv_epi32(one, right), one);
    const v16i above = _mm512_add_epi32(_mm512_srli_epi32(mask, 1), _mm512_srli_epi32(high, 31));
    const __mmask16 up = _mm512_cmpgt_epi32_mask(_mm512_and_si512(high, mask), above);
    const v16i floor = _mm512_srav_epi32(high, right);

    return _mm512_mask_add_epi32(floor, up, floor, one);
}
#elif defined(FOR_AVX2) || defined(FOR_AVXVNNI)
INLINE __m256i fixed_8(__m256i value, __m256i mantissa, __m256i exponent, int32_t by)
{
    const __m256i left = _mm256_max_epi32(exponent, _mm256_setzero_si256()), right = _mm256_sub_epi32(left, exponent);
    const __m256i one = _mm256_set1_epi32(1), half = _mm256_set1_epi64x((int64_t)1 << 30);
    const __m256i moved = _mm256_sllv_epi32(_mm256_slli_epi32(value, by), left);
    const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(moved, mantissa), half);
    const __m256i odd =
        _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(moved, 32), _mm256_srli_epi64(mantissa, 32)), half);
    const __m256i high = _mm256_blend_epi32(_mm256_srli_epi64(even, 31), _mm256_slli_epi64(odd, 1), 0xaa);
    const __m256i mask = _mm256_sub_epi32(_mm256_sllv_epi32(one, right), one);
    const __m256i above = _mm256_add_epi32(_mm256_srli_epi32(mask, 1), _mm256_srli_epi32(high, 31));
    const __m256i up = _mm256_cmpgt_epi32(_mm256_and_si256(high, mask), above);

    return _mm256_sub_epi32(_mm256_srav_epi32(high, right), up);
}

INLINE v16i fixed_by(v16i value, v16i mantissa, v16i exponent, int32_t by)
{
    value.lo = fixed_8(value.lo, mantissa.lo, exponent.lo, by);
    value.hi = fixed_8(value.hi, mantissa.hi, exponent.hi, by);
    return value;
}
#else
INLINE v16i fixed_by(v16i value, v16i mantissa, v16i exponent, int32_t by)
{
    int32_t v[16], m[16], e[16];

    store_i((uint8_t *)v, value, 16);
    store_i((uint8_t *)m, mantissa, 16);
    store_i((uint8_t *)e, exponent, 16);
    for (int32_t i = 0; i < 16; i++) {
        const int32_t left = e[i] > 0 ? e[i] : 0, right = left - e[i];
        const int64_t product = (int64_t)(int32_t)((uint32_t)v[i] << by << left) * m[i];
        const int32_t high = (int32_t)((uint64_t)(product + ((int64_t)1 << 30)) >> 31);
        const int32_t mask = (int32_t)(((uint32_t)1 << right) - 1);

        v[i] = (high >> right) + ((high & mask) > (mask >> 1) + (high < 0));
    }
    return load_i(v);
}
#endif

/* The same of accumulators, with the factors of 16 channels. */
INLINE v16i fixed_16(v16i acc, const int32_t *mantissa, const int32_t *exponent)
{
    return fixed_by(acc, load_i(mantissa), load_i(exponent), 0);
}
