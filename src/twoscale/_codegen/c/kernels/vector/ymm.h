/* Numbers in registers of 256 bits: what AVX2 and AVX-VNNI share. */
#define ACCUMULATORS 6 /* of two registers, of 16; the others hold weights and an activation */
#ifdef FOR_AVXVNNI
#define PACKED_ACCUMULATORS 5 /* with packed weights, which take two more registers to unpack */
#else
#define PACKED_ACCUMULATORS ACCUMULATORS
#endif

/* Whether there is a NaN or an infinity. */
INLINE int not_finite(v16f a)
{
    const __m256 lo = _mm256_sub_ps(a.at[0], a.at[0]), hi = _mm256_sub_ps(a.at[1], a.at[1]);

    return _mm256_movemask_ps(_mm256_cmp_ps(_mm256_add_ps(lo, hi), _mm256_setzero_ps(), _CMP_NEQ_UQ));
}

/* Whether any |a| is above the limit. */
INLINE int any_beyond(v16f a, float limit)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256 most = _mm256_max_ps(_mm256_andnot_ps(sign, a.at[0]), _mm256_andnot_ps(sign, a.at[1]));

    return _mm256_movemask_ps(_mm256_cmp_ps(most, _mm256_set1_ps(limit), _CMP_GT_OQ));
}

/* The first `count` of 16 bytes as numbers; the others are undefined. */
INLINE v16i load_u8(const uint8_t *from, int32_t count)
{
    uint8_t some[16] = {0};
    const v16b bytes = load_b(readable(from, count, some));
    v16i v;

    v.at[0] = _mm256_cvtepu8_epi32(bytes);
    v.at[1] = _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8));
    return v;
}

/* The first `count` of 16 numbers in 0..255 as bytes. */
INLINE void store_u8(uint8_t *to, v16i a, int32_t count)
{
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.at[0], a.at[1]), 0xD8);

    store_b(to, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)), count);
}

/* Store three bytes of each of the first `count` of 16 numbers, side by side. */
INLINE void store_threes(uint8_t *to, v16i a, int32_t count)
{
    const __m256i bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m256i words = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7);
    uint8_t all[56];

    _mm256_storeu_si256((__m256i *)(void *)all, _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(a.at[0], bytes), words));
    _mm256_storeu_si256((__m256i *)(void *)(all + 24), _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(a.at[1], bytes), words));
    if (count >= 16)
        memcpy(to, all, 48);
    else
        memcpy(to, all, (size_t)(3 * count));
}

/* RNE of |numbers| < 2^31, clamped to 0..255, in the given order. */
INLINE __m256i round_32(v16f a, v16f b)
{
    const __m256i words_a = _mm256_packs_epi32(_mm256_cvtps_epi32(a.at[0]), _mm256_cvtps_epi32(a.at[1]));
    const __m256i words_b = _mm256_packs_epi32(_mm256_cvtps_epi32(b.at[0]), _mm256_cvtps_epi32(b.at[1]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);

    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words_a, words_b), order);
}

INLINE v64b round_64(v16f a, v16f b, v16f c, v16f d)
{
    const v64b v = {{round_32(a, b), round_32(c, d)}};

    return v;
}
